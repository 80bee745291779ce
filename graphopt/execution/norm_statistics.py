"""What batch norms normalize by, measured on data: moments of channels, and norms that take those of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import observe
from graphopt.ir.calls import argument, operand
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family


class ChannelMoments:
    """Mean and variance of each channel (dimension 1) of a value, pooled over batches, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | float = 0.0

    def update(self, value: Tensor) -> None:
        rows = value.detach().movedim(1, 0).flatten(1).double()
        self.sums = self.sums + torch.stack([rows.sum(1), (rows**2).sum(1)])
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.sums)[0] / self.count

    @property
    def var(self) -> Tensor:
        return (torch.as_tensor(self.sums)[1] / self.count - self.mean**2).clamp(min=0)


def by_batch(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool, *rest: Any) -> Tensor:
    """Batch norm as in training, to override one with; running statistics are written to, in copies here."""
    found: Tensor = aten.batch_norm.default(x, weight, bias, mean.clone(), var.clone(), True, *rest)
    return found


class Statistics(NamedTuple):
    """A batch norm's call, and the constants that it normalizes by."""

    node: Node
    mean: Node
    var: Node


def pooled_statistics(graph: Graph, data: Iterable[list[Tensor]]) -> list[tuple[Statistics, ChannelMoments]]:
    """What each batch norm normalizes over all batches, where those in front of it normalize by the batch; none without data.

    The graph is in eval mode, and is not changed.
    """
    norms = [found for node in graph.calls() if (found := _statistics(graph, node)) is not None]
    moments = {operand(norm.node): ChannelMoments() for norm in norms}
    seen = observe(graph, moments, data, {norm.node: by_batch for norm in norms}) if norms else 0
    known = [(norm, moments[operand(norm.node)]) for norm in norms]
    return [each for each in known if each[1].count] if seen else []


def _statistics(graph: Graph, node: Node) -> Statistics | None:
    """None where a call is no batch norm by running statistics; weight and bias may be computed."""
    if family(node) != "batch_norm" or argument(node, "training"):
        return None
    mean, var = argument(node, "running_mean"), argument(node, "running_var")
    return Statistics(node, mean, var) if graph.is_constant(mean) and graph.is_constant(var) else None

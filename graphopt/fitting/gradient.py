"""Gradient descent on what is learnable of a region.

minimize    E | f(x) - y |^2 / E | y |^2  +  penalty        x: the region's inputs in the changed graph
                                                             y: its result in the original
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph


@dataclass(frozen=True)
class Search:
    """How long and how fast.

    Attributes:
        iterations: gradient steps.
        batch: samples of each.
        rate: learning rate of what has a pace of 1.
        seed: of the order in which samples are taken.
    """

    iterations: int
    batch: int
    rate: float
    seed: int


class Learnable(ABC):
    """Constants of a region that are computed from parameters, differentiably."""

    @abstractmethod
    def values(self, share: float) -> Mapping[Node, Any]:
        """Constants, or calls on constants, as they are now.

        `share`: the part of a gradient step's samples that is computed at a time. The gradients of the parts add up.
        """

    @abstractmethod
    def parameters(self) -> list[tuple[Tensor, float]]:
        """What is learned, and the pace of each: its learning rate as a multiple of `Search.rate`."""

    def penalty(self, done: float) -> Tensor | None:
        """What is added to the loss once this share of the iterations is done."""
        return None


def descend(graph: Graph, region: Region, samples: Samples, learned: Learnable, search: Search) -> None:
    """Move the parameters to where the region's error is small, by Adam with a falling rate."""
    executor = Executor(graph, gradients=True)
    fixed = Executor(graph).run(_fixed_calls(region, learned.values(1.0).keys()), {})

    def loss(numbers: Sequence[int], share: float) -> Tensor:
        part = samples.take(numbers)
        given = dict(zip(region.inputs, part.inputs, strict=True)) | fixed | dict(learned.values(share))
        return part.error(executor.run([region.output], given)[region.output]) / samples.power * share

    rates = {tensor: search.rate * pace for tensor, pace in learned.parameters()}
    optimizer = torch.optim.Adam([{"params": [tensor]} for tensor in rates], betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(search.seed)
    todo: list[list[int]] = []
    for turn in range(search.iterations):
        if not todo:
            order = torch.randperm(len(samples.fitted), generator=generator).tolist()
            todo = samples.cut([samples.fitted[i] for i in order], search.batch)
        done, picked = turn / search.iterations, todo.pop(0)
        optimizer.zero_grad()
        with torch.enable_grad():
            for numbers in samples.cut(picked):
                loss(numbers, len(numbers) / len(picked)).backward()  # type: ignore[no-untyped-call]
            if (penalty := learned.penalty(done)) is not None:
                penalty.backward()  # type: ignore[no-untyped-call]
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        optimizer.step()


def _fixed_calls(region: Region, learned: Collection[Node]) -> list[Node]:
    """The calls of a region on constants that are not learned."""
    found: dict[Node, None] = {}
    for node in region.nodes:
        sources = node.all_input_nodes
        if node not in learned and all((s.op == "get_attr" and s not in learned) or s in found for s in sources):
            found[node] = None
    return list(found)

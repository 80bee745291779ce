"""Measure batch-norm statistics again, after weights in front of them have changed.

Each batch norm gets the mean and variance of its inputs over all batches (pooled exactly, not a running average), while all
batch norms in front normalise by the batch at hand, as in training.

Needs:  batch norms not folded yet; batches large enough to normalise by (tens of samples).
Paper:  Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphopt.execution.observers import observe
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change, in_eval_mode


@dataclass(frozen=True)
class ReestimateBatchNorm:
    """`data`: batches of inputs."""

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] = field(repr=False)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        norms = [norm for node in graph.calls() if (norm := BatchNorm.of(node)) is not None]
        moments = {norm.input: _Moments() for norm in norms}
        seen = observe(graph, moments, self.data, {norm.node: _by_batch for norm in norms}) if norms else 0
        if not seen:
            return []
        return [c for norm in norms if (c := self._set(graph, norm, moments[norm.input])) is not None]

    def _set(self, graph: Graph, norm: BatchNorm, moments: _Moments) -> Change | None:
        mean, var = norm.mean, norm.var
        old = graph.tensor(var)
        found = moments.mean.to(old.dtype), moments.var.to(old.dtype)
        if torch.equal(found[0], graph.tensor(mean)) and torch.equal(found[1], old):
            return None
        graph.put_constant(mean, found[0])
        graph.put_constant(var, found[1])
        ratio = float((moments.var / old.double().clamp(min=1e-30)).median())
        return Change(graph.site(norm.node), f"median variance x {ratio:.3g}")


class _Moments:
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


def _by_batch(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool, *rest: Any) -> Tensor:
    """Batch norm as in training; running statistics are written to, in copies here."""
    found: Tensor = aten.batch_norm.default(x, weight, bias, mean.clone(), var.clone(), True, *rest)
    return found

"""Measure batch-norm statistics again, after weights in front of them have changed.

Each batch norm gets the mean and variance of its inputs over all batches (pooled exactly, not a running average), while all
batch norms in front normalise by the batch at hand, as in training.

Needs:  batch norms not folded yet; batches large enough to normalise by (tens of samples).
Paper:  Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from graphopt.execution.norm_statistics import ChannelMoments, Statistics, pooled_statistics
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change, in_eval_mode


@dataclass(frozen=True)
class ReestimateBatchNorm:
    """`data`: batches of inputs."""

    exact: ClassVar[bool] = False

    data: Iterable[list[Tensor]] = field(repr=False)

    @in_eval_mode
    def __call__(self, graph: Graph) -> list[Change]:
        found = pooled_statistics(graph, self.data)
        return [c for norm, moments in found if (c := self._set(graph, norm, moments)) is not None]

    def _set(self, graph: Graph, norm: Statistics, moments: ChannelMoments) -> Change | None:
        mean, var = norm.mean, norm.var
        old = graph.tensor(var)
        found = moments.mean.to(old.dtype), moments.var.to(old.dtype)
        if torch.equal(found[0], graph.tensor(mean)) and torch.equal(found[1], old):
            return None
        graph.put_constant(mean, found[0])
        graph.put_constant(var, found[1])
        ratio = float((moments.var / old.double().clamp(min=1e-30)).median())
        return Change(graph.site(norm.node), f"median variance x {ratio:.3g}")

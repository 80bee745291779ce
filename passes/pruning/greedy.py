"""What a unit is worth, judged by the outputs of the layers that read it.

All three see the same numbers: the second moments of the readers' inputs over the data, in constant memory. With W_u the
columns of unit u in a reader's weight and x_u its inputs, the contributions of two units overlap by

    Q_uv = tr( W_u E[x_u x_v^T] W_v^T )         [units, units], centred: a constant goes into the bias

and removing the set R without re-fitting costs sum of Q over R x R. Each reader counts relative to its output's power.

Units that no layer reads directly (positions of queries and keys) cannot be judged: infinitely good, so they stay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Array
from graphopt.analysis.im2col import weight_matrix
from graphopt.analysis.moments import Moments
from graphopt.ir.graph import Graph
from graphopt.passes.pruning.criteria import Criterion
from graphopt.passes.pruning.readers import Reader
from graphopt.passes.pruning.statistics import reader_moments
from graphopt.passes.pruning.surgeon import Order, removal_order

STAYS = float("inf")


@dataclass(frozen=True)
class _Reading(ABC):
    """`data`: batches of inputs."""

    greedy: ClassVar[bool] = True  # scores are errors once the unit has gone, not its own

    data: Iterable[list[Tensor]] = field(repr=False)

    def prepare(self, graph: Graph, groups: list[Group]) -> Criterion:
        scores = {}
        for group, found, moments in reader_moments(graph, groups, self.data):
            read = np.isin(np.arange(len(group)), [unit for reader in found for unit in reader.units])
            judged = self.scores(graph, group, found, moments)
            scores[group.key] = judged.masked_fill(~torch.from_numpy(read), STAYS)
        return lambda graph, group: scores[group.key]

    @abstractmethod
    def scores(self, graph: Graph, group: Group, readers: list[Reader], moments: dict[Node, Moments]) -> Tensor:
        """One score per unit, [units], from the moments of what the readers read."""


@dataclass(frozen=True)
class Reconstruction(_Reading):
    """Least error of the readers after re-fitting them by least squares, greedily (see `graphopt.passes.pruning.surgeon`)."""

    def scores(self, graph: Graph, group: Group, readers: list[Reader], moments: dict[Node, Moments]) -> Tensor:
        problems = [_problem(graph, r, moments[r.layer.node]) for r in readers]
        return _ranked(len(group), removal_order(problems, group)[0])


@dataclass(frozen=True)
class ThiNet(_Reading):
    """The set whose contributions cancel best, greedily. Luo et al. 2017, "ThiNet: A Filter Level Pruning Method"."""

    def scores(self, graph: Graph, group: Group, readers: list[Reader], moments: dict[Node, Moments]) -> Tensor:
        return _cheapest_sets(_overlap(graph, group, readers, moments))


@dataclass(frozen=True)
class Lasso(_Reading):
    """The penalty at which a unit enters the LASSO path of its readers' outputs. He et al. 2017, "Channel Pruning", section 3.1.

    min_b  | y - sum_u b_u W_u x_u |^2 + penalty |b|_1, along falling penalties, by coordinate descent.
    """

    def scores(self, graph: Graph, group: Group, readers: list[Reader], moments: dict[Node, Moments]) -> Tensor:
        return _entry_penalty(_overlap(graph, group, readers, moments))


def _problem(graph: Graph, reader: Reader, moments: Moments) -> tuple[Tensor, Tensor, Array]:
    return weight_matrix(reader.layer, graph.tensor(reader.layer.weight)), moments.xx[0], reader.units


def _ranked(count: int, order: Order) -> Tensor:
    scores = torch.full((count,), STAYS, dtype=torch.float64)
    for unit, error in zip(order.units, order.error, strict=True):
        scores[unit] = error
    return scores


def _overlap(graph: Graph, group: Group, readers: list[Reader], moments: dict[Node, Moments]) -> Tensor:
    """Q summed over the readers, each divided by its output's power: [units, units]."""
    overlap = torch.zeros(len(group), len(group), dtype=torch.float64)
    for reader in readers:
        weight, second, units = _problem(graph, reader, moments[reader.layer.node])
        weight = weight.double()
        owner = torch.from_numpy(units)
        member = torch.zeros(len(owner), len(group) + 1, dtype=torch.float64)
        member[torch.arange(len(owner)), owner] = 1  # columns of no unit fall into the last
        products = (weight.T @ weight) * second
        overlap += member[:, :-1].T @ products @ member[:, :-1] / products.sum().clamp(min=1e-30)
    return overlap


def _cheapest_sets(overlap: Tensor) -> Tensor:
    count = len(overlap)
    scores = torch.full((count,), STAYS, dtype=torch.float64)
    left = torch.ones(count, dtype=torch.bool)
    with_removed, cost, highest = torch.zeros(count, dtype=torch.float64), 0.0, 0.0
    for _ in range(count):
        growth = (overlap.diagonal() + 2 * with_removed).masked_fill(~left, STAYS)
        unit = int(growth.argmin())
        cost += float(growth[unit])
        highest = max(highest, cost)  # contributions may cancel; the order is kept
        scores[unit] = highest
        left[unit] = False
        with_removed += overlap[unit]
    return scores


def _entry_penalty(overlap: Tensor, steps: int = 60, sweeps: int = 20) -> Tensor:
    aim = overlap.sum(1)  # E[y . W_u x_u]: y is the sum of all contributions
    scale = overlap.diagonal().clamp(min=1e-30)
    b = torch.zeros(len(overlap), dtype=torch.float64)
    entered = torch.zeros_like(b)
    top = float(aim.abs().max())
    for penalty in torch.logspace(0, -4, steps, dtype=torch.float64) * top:
        for _ in range(sweeps):
            before = b.clone()
            for u in range(len(b)):
                pull = aim[u] - overlap[u] @ b + overlap[u, u] * b[u]
                b[u] = torch.sign(pull) * (pull.abs() - penalty).clamp(min=0) / scale[u]
            if float((b - before).abs().max()) < 1e-6:
                break
        entered = torch.where((entered == 0) & (b != 0), penalty, entered)
    return entered

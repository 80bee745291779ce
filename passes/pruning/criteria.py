"""What a unit is worth, judged by the weights alone.

A criterion is a function of the graph and a group that returns one score per unit; the lowest go first. Your own in three lines:

    def largest_weight(graph, group):
        return torch.stack([per_unit(m, graph.tensor(m.node).abs(), "amax") for m in group.writers]).amax(0)

Importance is that of the whole group: a channel of a residual stream is as important as everything that writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from graphopt.analysis.channels.groups import Group, Member
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm, Layer
from graphopt.ir.ops import family

Criterion = Callable[[Graph, Group], Tensor]


class PreparedCriterion(Protocol):
    """A criterion that looks at data first: `prepare` goes through them once for all groups."""

    def prepare(self, graph: Graph, groups: list[Group]) -> Criterion: ...


def per_unit(member: Member, elements: Tensor, reduce: str = "sum") -> Tensor:
    """Reduce a tensor of a member's shape to one number per unit: [units of the group].

    Args:
        member: says along which dimension the units lie.
        elements: for instance the absolute weights.
        reduce: `sum`, `amax`, `amin` or `mean`.
    """
    rows = elements.detach().movedim(member.dim, 0).reshape(elements.shape[member.dim], -1)
    owner = torch.from_numpy(member.units)
    rows, owner = rows[owner >= 0], owner[owner >= 0]
    shape = (int(member.units.max()) + 1, rows.shape[1])
    gathered = torch.zeros(shape, dtype=rows.dtype).scatter_reduce(
        0, owner[:, None].expand_as(rows), rows, reduce, include_self=False
    )
    return getattr(gathered, reduce)(1)  # type: ignore[no-any-return]


def total(graph: Graph, group: Group, f: Callable[[Tensor], Tensor], members: list[Member] | None = None) -> Tensor:
    """The sum of f over everything that writes a unit: [units]."""
    score = torch.zeros(len(group))
    for member in group.writers if members is None else members:
        found = per_unit(member, f(graph.tensor(member.node)))
        score[: len(found)] += found
    return score


def l1_norm(graph: Graph, group: Group) -> Tensor:
    """Sum of absolute weights. Li et al. 2017, "Pruning Filters for Efficient ConvNets"."""
    return total(graph, group, torch.abs)


def l2_norm(graph: Graph, group: Group) -> Tensor:
    """Euclidean length of the weights."""
    return total(graph, group, torch.square).sqrt()


def batch_norm_scale(graph: Graph, group: Group) -> Tensor:
    """Size of the batch norm's factor. Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".

    Units without a batch norm cannot be judged: infinitely good, so they stay.
    """
    scales = [m for m in group.members if any(family(u) == "batch_norm" and u.args[1] is m.node for u in m.node.users)]
    return total(graph, group, torch.abs, scales) if scales else torch.full((len(group),), float("inf"))


def geometric_median(graph: Graph, group: Group) -> Tensor:
    """Sum of distances to all other filters: what lies in the middle can be replaced by the rest. He et al. 2019 (FPGM)."""
    filters = filters_of(graph, group)
    return torch.cdist(filters, filters).sum(1)


def similarity(graph: Graph, group: Group) -> Tensor:
    """What is lost when a unit's readers read its twin instead. Srinivas & Babu 2015, "Data-free Parameter Pruning".

    s_ij = |w_i - w_j|^2 mean(a_i^2), the least over j; w: what makes the unit, a: what its readers multiply it with. Goes with
    `Prune(..., compensate="merge")`, which adds the readers' weights to the twin's.
    """
    filters = filters_of(graph, group)
    apart = torch.cdist(filters, filters).square().fill_diagonal_(float("inf"))
    return apart.amin(1) * reading_power(graph, group)


def reading_power(graph: Graph, group: Group) -> Tensor:
    """Mean square of the weights that read each unit: [units]; ones where none do."""
    reading = [m for m in group.members if not m.writes and any(Layer.of(u) for u in m.node.users)]
    if not reading:
        return torch.ones(len(group))
    counts = total(graph, group, torch.ones_like, reading)
    return total(graph, group, torch.square, reading) / counts.clamp(min=1)


@dataclass(frozen=True)
class Random:
    """Scores without meaning, the baseline of every criterion. `seed`: of the generator."""

    seed: int = 0

    def __call__(self, graph: Graph, group: Group) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + group.key)
        return torch.rand(len(group), generator=generator)


def filters_of(graph: Graph, group: Group) -> Tensor:
    """Everything that makes a unit as one row, batch norms behind the layers multiplied in: [units, features]."""
    parts = []
    for member in group.writers:
        rows = graph.tensor(member.node).movedim(member.dim, 0).flatten(1)
        for reader in member.node.users:
            rows = _through_norm(graph, reader, rows)
        units = torch.from_numpy(member.units)
        order = torch.argsort(units[units >= 0], stable=True)
        rows = rows[units >= 0][order]
        parts.append(rows.reshape(len(torch.unique(units[units >= 0])), -1))
    complete = [p for p in parts if len(p) == len(group)]
    return torch.cat(complete or [torch.zeros(len(group), 1)], 1)


def _through_norm(graph: Graph, layer: Any, rows: Tensor) -> Tensor:
    """Filters [out, features] as they are behind the layer's bias and batch norm, the constant term as a last feature."""
    found = Layer.of(layer)
    if found is None or found.weight_axis or len(rows) != found.out_channels:
        return rows
    bias = graph.tensor(found.bias) if graph.is_constant(found.bias) else torch.zeros(len(rows))  # type: ignore[arg-type]
    readers = list(found.node.users)
    norm = BatchNorm.of(readers[0]) if len(readers) == 1 else None
    if norm is not None:
        ones = torch.ones(len(rows))
        weight, shift, mean, var = (
            graph.tensor(a) if a is not None else default
            for a, default in ((norm.weight, ones), (norm.bias, 0 * ones), (norm.mean, ones), (norm.var, ones))
        )
        scale = weight / torch.sqrt(var + norm.eps)
        rows, bias = rows * scale[:, None], (bias - mean) * scale + shift
    return torch.cat([rows, bias[:, None]], 1)

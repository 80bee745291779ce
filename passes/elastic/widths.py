"""Widths become choices: of every group of channels, how many count, the most important first.

A unit that does not count is held at zero in every weight that makes or reads it (`graphopt::keep`), so that what is left answers
as if it were gone; a group whose zeros would count somewhere (a constant is added, and then it is summed over) stays as it is.
Running statistics of batch norms are left alone, which training writes to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group, Member, groups
from graphopt.analysis.channels.trace import Trace
from graphopt.analysis.channels.vanishing import adds_zeros
from graphopt.ir.choices import KEEP, constant_name, one_hot
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BatchNorm
from graphopt.ir.passes import Change
from graphopt.utils.quantities import multiple_within


def importance(graph: Graph, group: Group) -> Tensor:
    """The L1 norm of the weights that make or read each unit, of every tensor as a share of the mean: [units].

    Cai et al. 2020, "Once-for-All", section 3.3.
    """
    score = torch.zeros(len(group), dtype=torch.float64)
    for member in group.members:
        tensor = graph.tensor(member.node)
        if tensor.dim() > 1 and tensor.is_floating_point():
            along = tensor.double().abs().movedim(member.dim, 0).flatten(1).sum(1)
            units = torch.from_numpy(member.units)
            found = torch.zeros_like(score).index_add_(0, units[units >= 0], along[units >= 0])
            score += found / found.mean().clamp(min=1e-30)
    return score


def insert_widths(
    graph: Graph,
    shares: Sequence[float],
    scores: Callable[[Graph, Group], Tensor],
    round_to: int,
    streams: bool,
    chosen: Callable[[str], bool],
) -> list[Change]:
    """A choice between widths, for each group of channels that may lose some."""
    trace = Trace(graph)
    found = [
        (g, _levels(graph, g, shares, scores, round_to))
        for g in groups(graph, trace)
        if chosen(g.name) and not g.statistics and (streams or not g.stream) and adds_zeros(graph, trace, g)
    ]
    changes = []
    for group, levels in found:
        if len(levels) > 1:
            _insert(graph, group, levels)
            counts = ", ".join(str(int(level.sum())) for level in levels)
            changes.append(Change(group.name, f"{counts} of {len(group)} {group.kind}"))
    return changes


def _levels(
    graph: Graph, group: Group, shares: Sequence[float], scores: Callable[[Graph, Group], Tensor], round_to: int
) -> Tensor:
    """Which units count, by option: [options, units], the first with all."""
    units = len(group)
    multiple = multiple_within(round_to, units) if group.width == 1 else 1
    order = group.removable(torch.argsort(scores(graph, group), stable=True).tolist())
    levels = [torch.ones(units)]
    for share in sorted(set(shares), reverse=True):
        kept = max(multiple, round(units * share / multiple) * multiple)
        gone = order[: units - kept]
        if len(gone) > int((levels[-1] == 0).sum()):
            levels.append(torch.ones(units).index_fill_(0, torch.tensor(gone), 0.0))
    return torch.stack(levels)


def _insert(graph: Graph, group: Group, levels: Tensor) -> None:
    statistics = {node for call in graph.calls() if (norm := BatchNorm.of(call)) for node in (norm.mean, norm.var)}
    members = [m for m in group.members if m.node not in statistics and graph.tensor(m.node).is_floating_point()]
    # in front of every reader of them: one constant serves all
    first = min(reader for member in members for reader in member.node.users)
    weights = graph.add_constant(constant_name(group.name, "width"), one_hot(0, len(levels)), before=first)
    for member in members:
        _hold(graph, member, weights, levels)


def _hold(graph: Graph, member: Member, weights: Node, levels: Tensor) -> None:
    """Let all readers of a constant read what counts of it."""
    units = torch.from_numpy(np.maximum(member.units, 0))
    along = torch.where(torch.from_numpy(member.units) >= 0, levels[:, units], torch.ones(()))
    readers = list(member.node.users)
    first = min(readers)
    constant = graph.add_constant(f"{member.node.target}_levels_{member.dim}", along, before=first)
    call = graph.call(KEEP, member.node, weights, constant, member.dim, before=first)
    call.meta["val"] = member.node.meta["val"]
    for reader in readers:
        reader.replace_input_with(member.node, call)

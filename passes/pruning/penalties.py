"""Penalties that make units weak before they are pruned, to add to the loss of an ordinary training loop.

lasso = GroupLasso(graph)
graph.train()
for x, y in loader:
    loss = cross_entropy(graph(x), y) + 1e-4 * lasso() + 1e-4 * slimming(graph)
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.analysis.channels.groups import Group, groups
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.utils.errors import InputError


def slimming(graph: Graph) -> Tensor:
    """Sum of |gamma| over all batch norms, with gradient. Liu et al. 2017, "Network Slimming", equation 1. A scalar tensor."""
    norms = [n for n in graph.calls() if family(n) == "batch_norm" and graph.is_constant(n.args[1])]
    scales = {str(n.args[1].target): graph.parameter(n.args[1]) for n in norms}  # type: ignore[union-attr, arg-type]
    return torch.stack([s.abs().sum() for s in scales.values()]).sum() if scales else torch.zeros(())


class GroupLasso:
    """sum over units of sqrt(p) |w_unit|_2, where w_unit is everything that writes the unit and p its number of elements.

    Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks", over groups of coupled channels; the groups are found
    once, when this is made.
    """

    def __init__(self, graph: Graph) -> None:
        """Find the groups of a graph. Raises `ValueError` where it has none that can be pruned."""
        self.graph = graph
        self.groups = [group for group in groups(graph) if len(group.free)]
        if not self.groups:
            raise InputError("the graph has no channels that can be pruned, so there is nothing to penalise")

    def __call__(self) -> Tensor:
        """The penalty at the present weights: a scalar tensor with gradient."""
        return torch.stack([self._of(group) for group in self.groups]).sum()

    def _of(self, group: Group) -> Tensor:
        squares, elements = torch.zeros(len(group)), torch.zeros(len(group))
        for member in group.writers:
            weight = self.graph.parameter(member.node)
            rows = weight.movedim(member.dim, 0).flatten(1)
            owner = torch.from_numpy(member.units)
            mine = owner >= 0
            squares = squares.index_add(0, owner[mine], (rows[mine] ** 2).sum(1))
            elements = elements.index_add(0, owner[mine], torch.full((int(mine.sum()),), float(rows.shape[1])))
        length = (squares + 1e-12).sqrt()[torch.from_numpy(group.free)]
        return (elements[torch.from_numpy(group.free)].sqrt() * length).sum()

"""What a network costs, as a function of how many units its groups lose.

Costs are sums of products of lengths (`measure.products`), and the length of a dimension is a sum of blocks of indices:

    one group       the indices of the units that are left; units may have different numbers of them
    several groups  a rectangle (heads and positions in each): indices x prod of the shares the groups keep

Both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from torch.fx.node import Node

from graphopt.analysis.channels.groups import Group
from graphopt.analysis.channels.labels import Columns
from graphopt.analysis.channels.trace import Trace
from graphopt.ir import cost as measure
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph

Counts = npt.NDArray[np.int64]
Kept = Sequence[npt.NDArray[np.bool_]]  # of each group, for each of its units whether it stays


@dataclass(frozen=True)
class Block:
    """Some indices of a dimension: their number, the groups they belong to, and for a single group the indices of each unit."""

    size: int
    groups: tuple[int, ...] = ()
    per_unit: Counts | None = None

    def left(self, kept: Kept) -> int:
        """The indices of the units that stay; of a rectangle the share that stays of each group."""
        if self.per_unit is not None:
            return int(self.per_unit[kept[self.groups[0]]].sum())
        return round(self.size * prod(float(kept[g].mean()) for g in self.groups))


Length = list[Block]


@dataclass(frozen=True)
class Cost:
    """A sum of products of lengths; `units` counts the units of each group."""

    terms: list[list[Length]]
    units: list[int]

    def saved_by(self, group: int) -> npt.NDArray[np.float64]:
        """What removing each unit of a group alone saves: [units]."""
        saved = np.zeros(self.units[group])
        for term in self.terms:
            lengths = [sum(b.size for b in length) for length in term]
            losses = [_loss(length, group, self.units[group]) for length in term]
            if any(loss.any() for loss in losses):
                left = np.prod([size - loss for size, loss in zip(lengths, losses, strict=True)], axis=0)
                saved += prod(lengths) - left
        return saved


def _loss(length: Length, group: int, units: int) -> npt.NDArray[np.float64]:
    """Indices a length loses with each unit."""
    loss = np.zeros(units)
    for block in length:
        if block.per_unit is not None and block.groups == (group,):
            loss += block.per_unit
        elif group in block.groups:
            loss += block.size / units
    return loss


class Budget:
    """A cost while units are taken from groups in given orders."""

    def __init__(self, cost: Cost, orders: Sequence[Sequence[int]], removed: Sequence[int]) -> None:
        self.cost, self.orders, self.removed = cost, orders, list(removed)
        self._tables: dict[int, Counts] = {}  # of each block with counts: indices left after k units
        self._touching: list[list[int]] = [[] for _ in cost.units]
        for number, term in enumerate(cost.terms):
            for length in term:
                for block in length:
                    if block.per_unit is not None:
                        lost = block.per_unit[np.array(orders[block.groups[0]], dtype=np.int64)].cumsum()
                        self._tables[id(block)] = block.size - np.concatenate([[0], lost])
                    for group in block.groups:
                        if number not in self._touching[group][-1:]:
                            self._touching[group].append(number)
        self._terms = [self._product(term) for term in cost.terms]

    @property
    def now(self) -> float:
        return sum(self._terms)

    def saving(self, group: int, removed: int) -> float:
        """What is saved when `group` has lost `removed` units in place of as many as now."""
        before, self.removed[group] = self.removed[group], removed
        saved = sum(self._terms[t] - self._product(self.cost.terms[t]) for t in self._touching[group])
        self.removed[group] = before
        return saved

    def take(self, group: int, removed: int) -> None:
        self.removed[group] = removed
        for t in self._touching[group]:
            self._terms[t] = self._product(self.cost.terms[t])

    def _product(self, term: list[Length]) -> float:
        return prod(sum(map(self._size, length)) for length in term)

    def _size(self, block: Block) -> float:
        if block.per_unit is not None:
            return float(self._tables[id(block)][self.removed[block.groups[0]]])
        return block.size * prod(1 - self.removed[g] / self.cost.units[g] for g in block.groups)


def macs(graph: Graph, trace: Trace, groups: Sequence[Group]) -> Cost:
    """Multiply-accumulates of one sample's forward pass, as `measure.macs` counts them."""
    length = Lengths(trace, groups)
    terms = [[length(*factor) for factor in product] for node in graph.calls() for product in measure.products(node)]
    return Cost(terms, [len(group) for group in groups])


def parameters(graph: Graph, trace: Trace, groups: Sequence[Group]) -> Cost:
    """Elements of the trainable constants."""
    length = Lengths(trace, groups)
    names = {name for name, _ in graph.named_parameters()}
    nodes = [node for node in trace.dims if node.op == "get_attr" and str(node.target) in names]
    return Cost([[length(node, d) for d in range(value(node).dim())] for node in nodes], [len(g) for g in groups])


def channels(groups: Sequence[Group]) -> Cost:
    """Units of all groups."""
    ones = [np.ones(len(group), dtype=np.int64) for group in groups]
    return Cost([[[Block(len(one), (g,), one)]] for g, one in enumerate(ones)], [len(group) for group in groups])


class Lengths:
    """Lengths of dimensions, in blocks of indices by the groups they belong to."""

    def __init__(self, trace: Trace, groups: Sequence[Group]) -> None:
        self.trace = trace
        self.units = [len(group) for group in groups]
        self.group_of = np.full(trace.labels.count + 1, -1, dtype=np.int64)  # the last is NONE's
        self.unit_of = self.group_of.copy()
        for number, group in enumerate(groups):
            self.group_of[group.labels] = number
            self.unit_of[group.labels] = np.arange(len(group))

    @property
    def everything(self) -> Kept:
        """All units stay."""
        return [np.ones(units, dtype=np.bool_) for units in self.units]

    def sizes(self, node: Node, kept: Kept) -> list[int]:
        """The shape of a value where these units stay."""
        if node not in self.trace.dims:
            return [measure.length(node, dim) for dim in range(value(node).dim())]
        lengths = (self(node, dim) for dim in range(value(node).dim()))
        return [sum(block.left(kept) for block in length) for length in lengths]

    def groups_of(self, node: Node) -> set[int]:
        """The groups that a value's shape depends on."""
        if node not in self.trace.dims:
            return set()
        return {group for dim in range(value(node).dim()) for block in self(node, dim) for group in block.groups}

    def __call__(self, node: Node, dim: int) -> Length:
        size = measure.length(node, dim)
        columns: Columns = self.trace.labels.resolve(self.trace.of(node)[dim])
        if not columns or size == 1:
            return [Block(size)]
        owners = np.stack([self.group_of[c] for c in columns])
        blocks = []
        for kind in np.unique(owners, axis=1).T:
            where = (owners == kind[:, None]).all(0)
            groups = sorted({int(g) for g in kind if g >= 0})
            per_unit = None
            if len(groups) == 1:
                column = columns[int(np.flatnonzero(kind == groups[0])[0])]
                per_unit = np.bincount(self.unit_of[column[where]], minlength=self.units[groups[0]])
            blocks.append(Block(int(where.sum()), tuple(groups), per_unit))
        return blocks

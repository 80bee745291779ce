"""What a network costs as a function of how many units its groups keep, and how fast that falls.

The length of a dimension is a sum of blocks of indices, each a product of the shares its groups keep:

    length = sum_b  n_b prod_{g in b} f_g            f_g: kept units / units of group g

Multiply-accumulates are products of lengths, parameters are products of a constant's lengths; both are exact wherever units of
one group have equal numbers of indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.fx.node import Node

from graphopt import measure
from graphopt.channels.groups import Group
from graphopt.channels.labels import Columns
from graphopt.channels.trace import Trace
from graphopt.graph import Graph
from graphopt.ops import value

Shares = npt.NDArray[np.float64]
Length = list[tuple[int, tuple[int, ...]]]  # blocks: indices, groups


@dataclass(frozen=True)
class Cost:
    """A sum of products of lengths.

    Attributes:
        terms: for each product its lengths.
        count: number of groups.
    """

    terms: list[list[Length]]
    count: int

    def __call__(self, shares: Shares) -> float:
        """The cost where group g keeps the share `shares[g]` of its units."""
        return float(sum(np.prod([_length(length, shares) for length in term]) for term in self.terms))

    def slope(self, shares: Shares) -> Shares:
        """Its derivative by each group's share: [groups]."""
        slope = np.zeros(self.count)
        for term in self.terms:
            lengths = np.array([_length(length, shares) for length in term])
            for position, length in enumerate(term):
                if any(groups for _, groups in length):
                    others = float(np.prod(np.delete(lengths, position)))
                    for size, groups in length:
                        for g in groups:
                            slope[g] += others * size * np.prod([shares[o] for o in groups if o != g])
        return slope


def _length(length: Length, shares: Shares) -> float:
    return float(sum(size * np.prod(shares[list(groups)]) for size, groups in length))


def macs(graph: Graph, trace: Trace, groups: Sequence[Group]) -> Cost:
    """Multiply-accumulates of one sample's forward pass (a free batch counts as in `measure.macs`)."""
    blocks = _Blocks(trace, groups)
    terms = []
    for node in graph.calls():
        terms += [[blocks.length(*factor) for factor in product] for product in measure.products(node)]
    return Cost(terms, len(groups))


def parameters(graph: Graph, trace: Trace, groups: Sequence[Group]) -> Cost:
    """Elements of the trainable constants."""
    blocks = _Blocks(trace, groups)
    names = {name for name, _ in graph.named_parameters()}
    nodes = [node for node in trace.dims if node.op == "get_attr" and str(node.target) in names]
    return Cost([[blocks.length(node, d) for d in range(value(node).dim())] for node in nodes], len(groups))


class _Blocks:
    def __init__(self, trace: Trace, groups: Sequence[Group]) -> None:
        self.trace = trace
        self.group_of = np.full(trace.labels.count + 1, -1, dtype=np.int64)  # the last is NONE's
        for number, group in enumerate(groups):
            self.group_of[group.labels] = number

    def length(self, node: Node, dim: int) -> Length:
        size = measure.length(node, dim)
        columns: Columns = self.trace.labels.resolve(self.trace.of(node)[dim])
        if not columns:
            return [(size, ())]
        owners = np.stack([self.group_of[c] for c in columns])
        kinds, counts = np.unique(owners, axis=1, return_counts=True)
        return [
            (int(n), tuple(sorted({int(g) for g in kind if g >= 0}))) for kind, n in zip(kinds.T, counts, strict=True)
        ]

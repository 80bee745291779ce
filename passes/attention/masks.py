"""What masks allow: which keys, the same for all queries, and whether later tokens.

    mask[.., i, j] = keys[.., j]  (and j <= i)        as true and false, or added to scores

Models compute masks of [.., queries, keys] from one of [.., keys] and from places of tokens. `rows` goes back through what is
done element by element, to values that have one row, and to values that follow from sizes alone: those are computed for several
sizes, and have to be equal in all rows, or true up to the diagonal. So nothing of queries times keys is left to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.build import Build
from graphopt.ir.calls import argument, operand, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, is_elementwise
from graphopt.ir.shapes import sizes_of, with_sizes
from graphopt.passes.attention.find import LOW

LONG = 1024  # tokens for which what follows from sizes is looked at, where the graph takes as many
OF_SIZES = {
    aten.sym_size.int, aten.new_ones.default, aten.new_zeros.default, aten.new_full.default, aten.ones_like.default,
    aten.zeros_like.default, aten.full_like.default,
}  # fmt: skip
AND = {aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default}
Emit = Callable[[Build], Node]


class QueryMask(Exception):
    """A mask that is another one for each query."""


@dataclass
class Rows:
    """Masks of a graph by key alone. `rows` gives what emits one, [.., 1, keys] (None: all keys), and whether it is causal."""

    graph: Graph
    _seen: dict[Node, list[Tensor]] = field(default_factory=dict)

    def rows(self, mask: Node) -> tuple[Emit | None, bool]:
        """Raises `QueryMask` where there is no such thing."""
        found = self._row(mask, "and" if value(mask).dtype == torch.bool else "add")
        return (None, True) if found is None else (found, self._is_causal(mask))

    def _is_causal(self, mask: Node) -> bool:
        """Whether the diagonal was left out on the way."""
        todo, seen = [mask], set[Node]()
        while todo:
            node = todo.pop()
            if node in seen or not _has_rows(node):
                continue
            seen.add(node)
            if node not in self._contents and self._shape_of(node) == "causal":
                return True
            todo += [n for n in node.all_input_nodes if isinstance(value(n), Tensor)]
        return False

    def _row(self, node: Node, inside: str | None) -> Emit | None:
        """What emits a row of a value; None: the part of it that is causal, and allows the rest.

        Args:
            inside: `and` or `add` where this is one of the parts of the mask, which all have to allow.
        """
        if not _has_rows(node):
            return lambda build: node
        if node not in self._contents:
            kind = self._shape_of(node)
            if kind == "rows":
                return lambda build: build.call(aten.slice.Tensor, node, -2, 0, 1)
            if kind == "causal" and inside == ("and" if value(node).dtype == torch.bool else "add"):
                return None
            raise QueryMask
        if node.target is aten.expand.default:
            return self._row(operand(node), inside)  # what reads it spreads it itself
        if node.target is aten.slice.Tensor:
            return self._cut(node, inside)
        if not is_elementwise(node) and node.target not in (*AND, aten.to.dtype):
            raise QueryMask
        return self._each(node, inside)

    def _each(self, node: Node, inside: str | None) -> Emit | None:
        """Of what is computed element by element."""
        joins = "and" if node.target in AND else "add" if node.target is aten.add.Tensor else None
        below = inside if joins == inside else "and" if inside == "add" and _forbids(node) else None
        parts = {n: self._row(a, below) for n, a in enumerate(node.args) if isinstance(a, Node) and _is_value(a)}
        if None in parts.values():  # a causal part: of a sum the others are left, of where(causal, 0, low) nothing
            return None if joins is None else next((part for part in parts.values() if part is not None), None)

        def emit(build: Build) -> Node:
            given = [a if (part := parts.get(n)) is None else part(build) for n, a in enumerate(node.args)]
            return build.call(node.target, *given, **node.kwargs)

        return emit

    def _cut(self, node: Node, inside: str | None) -> Emit | None:
        inner, dim = self._row(operand(node), inside), argument(node, "dim") % len(shape(node))
        if inner is None or dim == len(shape(node)) - 2:
            return inner
        return lambda build: build.call(aten.slice.Tensor, inner(build), *node.args[1:])

    # ---- What follows from sizes alone ------------------------------------------------------------------------------

    @cached_property
    def _contents(self) -> set[Node]:
        """What depends on more of the inputs than their sizes."""
        found = set[Node](self.graph.inputs)
        for call in self.graph.calls():
            if call.target not in OF_SIZES and not found.isdisjoint(call.all_input_nodes):
                found.add(call)
        return found

    @cached_property
    def _batches(self) -> list[list[Tensor]]:
        """The example, as it is and longer."""
        graph, example = self.graph, self.graph.example.tensors()
        own = sizes_of(graph.free_sizes, example)
        longer = [
            n if size is graph.batch else max(n, min(next(size.following(LONG), n), size.max or LONG))
            for size, n in zip(graph.free_sizes, own, strict=True)
        ]
        return [example] if longer == own else [example, with_sizes(example, graph.free_sizes, longer)]

    def _values(self, node: Node) -> list[Tensor]:
        if node not in self._seen:
            runs = [Executor(self.graph).run([node], batch)[node] for batch in self._batches]
            self._seen[node] = runs
        return self._seen[node]

    def _shape_of(self, node: Node) -> str | None:
        """`rows`: all rows are equal; `causal`: true, or zero, up to the diagonal, and nothing beyond."""
        values = self._values(node)
        if all(torch.equal(v, v[..., :1, :].expand_as(v)) for v in values):
            return "rows"
        return "causal" if all(_up_to_diagonal(v) for v in values) else None


def _up_to_diagonal(mask: Tensor) -> bool:
    if mask.shape[-1] != mask.shape[-2]:
        return False
    past = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    if mask.dtype == torch.bool:
        return bool((mask == past).all())
    return bool((mask.masked_fill(~past, 0) == 0).all() and (mask.masked_fill(past, LOW) <= LOW).all())


def _forbids(node: Node) -> bool:
    """Whether this is where(allowed, 0, low)."""
    if node.target not in (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar):
        return False
    ends = [a if isinstance(a, (int, float)) else None for a in node.args[1:]]
    return ends[0] == 0 and ends[1] is not None and ends[1] <= LOW


def _has_rows(node: Node) -> bool:
    sizes = shape(node) if isinstance(value(node), Tensor) else ()
    return len(sizes) > 1 and not (isinstance(sizes[-2], int) and sizes[-2] == 1)


def _is_value(node: Node) -> bool:
    return isinstance(value(node), Tensor)

"""Rules of operators that move channels about: the operator itself is run on labels where it can be."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.labels import NONE
from graphopt.analysis.channels.trace import Dims, Trace, is_known, places, sizes
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.ops import aten


def movement(trace: Trace, node: Node) -> Any:
    """Run the operator on labels and read where they went."""
    if not all(is_known(trace.graph, n) for n in places(node)):
        trace.fix(node, f"{node.name}, which looks up what is only known while running")
        return None
    moved = trace.move(node)
    return moved[0] if isinstance(value(node), Tensor) else moved


def roll(trace: Trace, node: Node) -> Dims:
    """Turned around by a number of indices: the dimensions stay."""
    moved: Dims = movement(trace, node)
    for d in argument(node, "dims"):
        trace.pin(moved[d], node)
    return moved


def index(trace: Trace, node: Node) -> Dims | None:
    """Rows of a table by constant indices: the dimensions looked up stay."""
    for columns, position in zip(trace.of(node.args[0]), node.args[1], strict=False):  # type: ignore[arg-type]
        if position is not None:
            trace.pin(columns, node)
    moved: Dims | None = movement(trace, node)
    return moved


def slice_scatter(trace: Trace, node: Node) -> Dims:
    """The first argument with a range of it written over."""
    base, written = trace.of(node.args[0]), trace.of(node.args[1])
    dim = (argument(node, "dim") or 0) % len(base)
    where = slice(argument(node, "start"), argument(node, "end"), argument(node, "step"))
    for d, columns in enumerate(base):
        trace.tie([c[where] for c in columns] if d == dim else columns, written[d], node)
    return base


def take(trace: Trace, node: Node) -> Dims:
    """One result of a call with several."""
    source, position = node.args
    return trace.parts[source][position]  # type: ignore[index]


def expand(trace: Trace, node: Node) -> Dims:
    """A dimension of size one, repeated to a known size, may be repeated to a smaller one."""
    dims: Dims = movement(trace, node)
    before, after = value(operand(node)).shape, value(node).shape
    for back in range(1, len(after) + 1):
        repeated = back > len(before) or before[-back] == 1
        if repeated and isinstance(after[-back], int) and after[-back] > 1:
            dims[-back] = [trace.labels.fresh(after[-back])]
    return dims


def like(trace: Trace, node: Node) -> Dims:
    """The first argument in the shape of the second."""
    dims: Dims = expand(trace, node) if node.target is aten.expand_as.default else movement(trace, node)
    for columns, other, size in zip(dims, trace.of(node.args[1]), sizes(value(node)), strict=True):
        if size > 1:
            trace.tie(columns, other, node)
    return dims


def pad(trace: Trace, node: Node) -> Dims | None:
    """Padded channels have labels of their own; padded positions in space stay."""
    dims = list(trace.of(node.args[0]))
    result = value(node).shape
    amounts: Any = argument(node, "pad")
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        if not before and not after:
            continue
        if not isinstance(result[-back], int) or back < len(result) - 1 or before < 0 or after < 0:
            trace.pin(dims[-back], node)
            dims[-back] = []
        elif dims[-back]:
            edges = trace.labels.fresh(before + after)
            columns = trace.labels.resolve(dims[-back])
            first = [np.concatenate([edges[:before], columns[0], edges[before:]])]
            dims[-back] = first + [np.pad(c, (before, after), constant_values=NONE) for c in columns[1:]]
    return dims


def concat(trace: Trace, node: Node) -> Dims:
    every: list[Node] = list(node.args[0])  # type: ignore[arg-type]
    parts = [p for p in every if value(p).dim() == value(node).dim()]
    dim = (argument(node, "dim") or 0) % value(node).dim()
    dims = [trace.of(p) for p in parts]
    for other in dims[1:]:
        for d in range(len(other)):
            if d != dim:
                trace.tie(dims[0][d], other[d], node)
    joined = [trace.labels.resolve(d[dim]) for d in dims]
    width = max(map(len, joined))
    blocks = [
        [*columns, *[np.full(sizes(value(p))[dim], NONE, dtype=np.int64)] * (width - len(columns))]
        for columns, p in zip(joined, parts, strict=True)
    ]
    result: Dims = list(dims[0])
    result[dim] = [np.concatenate(column) for column in zip(*blocks, strict=True)]
    return result


def stack(trace: Trace, node: Node) -> Dims:
    parts: list[Node] = list(node.args[0])  # type: ignore[arg-type]
    dims = [trace.of(p) for p in parts]
    for other in dims[1:]:
        for one, two in zip(dims[0], other, strict=True):
            trace.tie(one, two, node)
    result: Dims = list(dims[0])
    result.insert((argument(node, "dim") or 0) % (len(result) + 1), [])
    return result

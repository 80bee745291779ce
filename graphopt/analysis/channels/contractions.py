"""Rules of operators that sum over a dimension two operands share: what is summed over is tied, the rest is passed on."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.labels import Columns
from graphopt.analysis.channels.trace import Dims, Trace, sizes
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.layer import Layer
from graphopt.ir.masks import unmasked


def linear(trace: Trace, node: Node) -> Dims:
    """[..., in] x [out, in] -> [..., out]"""
    source, weight = trace.of(node.args[0]), trace.of(node.args[1])
    _summed(trace, source[-1], weight[1], node)
    _bias(trace, node, weight[0])
    _writes(trace, node.args[1], 0)
    return [*source[:-1], weight[0]]


def convolution(trace: Trace, node: Node) -> Dims:
    """[N, in, ...] x [out, in / groups, ...] -> [N, out, ...]; in and out are [groups, *] grids that share their rows."""
    layer = Layer.of(node)
    assert layer is not None
    source, weight = trace.of(layer.input), trace.of(layer.weight)
    channel = _channel(trace, layer, source, weight)
    if layer.groups == 1:
        _summed(trace, source[channel], weight[1], node)
    else:
        rows, columns = grid(trace, node, source[channel], layer.groups, layer.in_channels)
        out_rows, _ = grid(trace, node, weight[0], layer.groups, layer.out_channels)
        trace.tie(rows, out_rows, node)
        if layer.in_channels > layer.groups:
            _summed(trace, columns, weight[1], node)
    _bias(trace, node, weight[0])
    _writes(trace, layer.weight, 0)
    return _result(node, source, channel, weight[0])


def transposed_convolution(trace: Trace, node: Node) -> Dims:
    """[N, in, ...] x [in, out / groups, ...] -> [N, out, ...]"""
    layer = Layer.of(node)
    assert layer is not None
    source, weight = trace.of(layer.input), trace.of(layer.weight)
    channel = _channel(trace, layer, source, weight)
    _summed(trace, source[channel], weight[0], node)
    out = weight[1]
    if layer.groups > 1:
        rows, _ = grid(trace, node, source[channel], layer.groups, layer.in_channels)
        inner = layer.out_channels // layer.groups
        out = [np.repeat(c, inner) for c in rows] + [np.tile(c, layer.groups) for c in out]
        if not rows:
            trace.pin(out, node)
            out = []
    _bias(trace, node, out)
    _writes(trace, layer.weight, 1)
    return _result(node, source, channel, out)


def _summed(trace: Trace, one: Columns, other: Columns, node: Node) -> None:
    """Products are summed over a dimension that both have."""
    trace.tie(one, other, node)
    trace.sums.append((one, node))


def grid(trace: Trace, node: Node, columns: Columns, groups: int, size: int) -> tuple[Columns, Columns]:
    """Channels as [groups, size / groups]: the columns of the rows, and those inside a row."""
    shape = [groups, size // groups]
    ((rows, inner),) = trace.run(node, lambda labels: [labels.reshape(shape)], [columns], [size], [shape])
    return rows, inner


def _channel(trace: Trace, layer: Layer, source: Dims, weight: Dims) -> int:
    channel = len(source) - 1 - layer.dims
    for columns in source[channel + 1 :] + weight[2:]:
        trace.pin(columns, layer.node)
    return channel


def _result(node: Node, source: Dims, channel: int, out: Columns) -> Dims:
    return [*source[:channel], out, *([[]] * (len(source) - channel - 1))]


def _bias(trace: Trace, node: Node, out: Columns) -> None:
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node):
        trace.tie(out, trace.of(bias)[0], node)


def _writes(trace: Trace, weight: Any, dim: int) -> None:
    """Note who makes the output channels. Of a weight that is computed (standardised), it is the largest constant behind it."""
    weight = unmasked(trace.graph, weight)
    if not trace.graph.is_constant(weight):
        own = {int(label) for column in trace.labels.resolve(trace.of(weight)[dim]) for label in column}
        behind = [
            (source, d)
            for source in _constants(trace, weight)
            for d, columns in enumerate(trace.of(source))
            if any(own.intersection(column.tolist()) for column in trace.labels.resolve(columns))
        ]
        if not behind:
            return
        weight, dim = max(behind, key=lambda found: value(found[0]).numel())
    trace.writers.append((weight, dim))


def _constants(trace: Trace, node: Node) -> list[Node]:
    """The constants a value is computed from; none where it depends on an input."""
    found: dict[Node, None] = {}
    stack, seen = [node], {node}
    while stack:
        top = stack.pop()
        if top.op == "placeholder":
            return []
        if trace.graph.is_constant(top):
            found[top] = None
        fresh = [source for source in top.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack += fresh
    return list(found)


def matmul(trace: Trace, node: Node) -> Dims | None:
    """[..., n, k] x [..., k, m] -> [..., n, m]; dimensions in front meet as in a sum."""
    return _product(trace, node, node.args[0], node.args[1])  # type: ignore[arg-type]


def _product(trace: Trace, node: Node, one: Node, other: Node) -> Dims | None:
    if value(one).dim() < 2 or value(other).dim() < 2:
        trace.fix(node, f"{node.name}, a product with a vector")
        return None
    left, right = trace.of(one), trace.of(other)
    _summed(trace, left[-1], right[-2], node)
    front = broadcast(trace, node, [(one, left[:-2]), (other, right[:-2])], len(value(node).shape) - 2)
    return [*front, left[-2], right[-1]]


def addmm(trace: Trace, node: Node) -> Dims | None:
    """bias + one x other"""
    dims = _product(trace, node, node.args[1], node.args[2])  # type: ignore[arg-type]
    if dims is None:
        return None
    bias = operand(node)
    for back, columns in enumerate(reversed(trace.of(bias)), start=1):
        if sizes(value(bias))[-back] > 1:
            trace.tie(dims[-back], columns, node)
    return dims


def broadcast(trace: Trace, node: Node, operands: list[tuple[Node, Dims]], count: int) -> Dims:
    """The leading `count` dimensions of a result, tied where operands meet; those of size one are repeated."""
    result: Dims = [[] for _ in range(count)]
    for back in range(1, count + 1):
        meeting = []
        for factor, dims in operands:
            size = sizes(value(factor))[len(dims) - back] if len(dims) >= back else 1
            if size > 1:
                meeting.append((size, dims[-back]))
        if len({size for size, _ in meeting}) > 1:  # several query heads for each key head
            for _, columns in meeting:
                trace.pin(columns, node)
            continue
        for _, other in meeting[1:]:
            trace.tie(meeting[0][1], other, node)
        result[-back] = meeting[0][1] if meeting else []
    return result


def einsum(trace: Trace, node: Node) -> Dims | None:
    """A letter is one dimension, wherever it stands."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if "." in equation or "->" not in equation:
        trace.fix(node, f"{node.name}, a product whose result is not spelled out")
        return None
    inputs, output = equation.split("->")
    known: dict[str, Columns] = {}
    for letters, factor in zip(inputs.split(","), operands, strict=True):
        for letter, columns, size in zip(letters, trace.of(factor), sizes(value(factor)), strict=True):
            if size == 1:
                known.setdefault(letter, [])
            elif known.get(letter):
                _summed(trace, known[letter], columns, node)
            elif letter in known:
                trace.pin(columns, node)
            else:
                known[letter] = columns
    return [known[letter] for letter in output]


def attention(trace: Trace, node: Node) -> Dims:
    """softmax(Q K^T) V: [..., heads, n, d] x [..., heads, m, d] x [..., heads, m, v] -> [..., heads, n, v]"""
    query, key, content = (trace.of(a) for a in node.args[:3])
    _summed(trace, query[-1], key[-1], node)
    trace.tie(key[-2], content[-2], node)
    trace.pin(key[-2], node)
    nodes: list[Node] = list(node.args[:3])  # type: ignore[arg-type]
    front = broadcast(
        trace, node, [(n, d[:-2]) for n, d in zip(nodes, (query, key, content), strict=True)], len(query) - 2
    )
    mask = argument(node, "attn_mask")
    if isinstance(mask, Node) and isinstance(value(mask), Tensor):
        dims = trace.of(mask)
        for columns in dims[-2:]:
            trace.pin(columns, node)
        for back in range(3, len(dims) + 1):
            if sizes(value(mask))[-back] > 1:
                trace.tie(front[len(front) - back + 2], dims[-back], node)
    return [*front, query[-2], content[-1]]

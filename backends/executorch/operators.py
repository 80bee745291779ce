"""Operators as XNNPACK's partitioner knows them, in place of those it does not, or that ExecuTorch's own kernels get wrong.

mean of an image            mean over the two last dimensions
unsqueeze, flatten, ...     one reshape
hard_sigmoid(x)             clip(x + 3, 0, 6) / 6, of tensors alone: numbers would be converted at run time
gelu(approximate="tanh")    its formula: XNNPACK of release 1.5.1 computes the exact function, 5e-4 apart
conv, max_pool2d of one image without a batch     of a batch of one
pad of less than nothing    slices
x % n of integers           x - floor(x / n) n: the kernel of release 1.5.1 rounds to zero, as C does
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.ir.calls import argument, is_float, operand, shape, value
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family
from graphopt.lowering.integers.fusion import DEQUANTIZE, QUANTIZE, quantizer
from graphopt.lowering.integers.legalize import GLOBAL_AVERAGE_POOL, is_dequantized

PADS = (aten.constant_pad_nd.default, aten.pad.default)
REMAINDERS = (aten.remainder.Scalar, aten.remainder.Tensor)


def write_plainly(graph: Graph) -> None:
    """Rewrite a graph with fixed shapes in place; see the head of this file. Every value stays what it is."""
    for node in graph.calls():
        kind = family(node)
        if node.target is GLOBAL_AVERAGE_POOL:
            graph.replace(node, graph.call(aten.mean.dim, operand(node), [2, 3], True, before=node, like=node))
        elif kind == "reshape":
            graph.replace(node, _reshaped(graph, operand(node), shape(node), node))
        elif kind == "hard_sigmoid":
            _clip_and_divide(graph, node)
        elif kind == "gelu" and argument(node, "approximate") == "tanh":
            _approximate_gelu(graph, node)
        elif _is_of_one_image(node):
            _batch(graph, node)
        elif node.target in PADS and min(argument(node, "pad"), default=0) < 0:
            _crop(graph, node)
        elif node.target in REMAINDERS and not is_float(node):
            _subtract_multiples(graph, node)


def _reshaped(graph: Graph, source: Node, sizes: tuple[Any, ...], node: Node) -> Node:
    return graph.call(aten.reshape.default, source, list(sizes), before=node, like=node)


def _numbers(graph: Graph, node: Node, *numbers: float) -> list[Node]:
    """Constants of the type of a call's result, in front of it."""
    tensors = [torch.tensor([number], dtype=value(node).dtype) for number in numbers]
    return [graph.add_constant(f"{node.name}_number", tensor, before=node) for tensor in tensors]


def _approximate_gelu(graph: Graph, node: Node) -> None:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    half, one, cubic, outer = _numbers(graph, node, 0.5, 1, 0.044715, math.sqrt(2 / math.pi))

    def call(target: Any, *operands: Node) -> Node:
        return graph.call(target, *operands, before=node, like=node)

    x, add, mul = operand(node), aten.add.Tensor, aten.mul.Tensor
    inner = call(mul, outer, call(add, x, call(mul, cubic, call(mul, x, call(mul, x, x)))))
    raised = call(add, one, call(aten.tanh.default, inner))
    graph.replace(node, call(mul, call(mul, x, half), raised))


def _clip_and_divide(graph: Graph, node: Node) -> None:
    three, six = _numbers(graph, node, 3, 6)
    raised = graph.call(aten.add.Tensor, operand(node), three, before=node, like=node)
    clipped = graph.call(aten.hardtanh.default, raised, 0.0, 6.0, before=node, like=node)
    graph.replace(node, graph.call(aten.div.Tensor, clipped, six, before=node, like=node))


def _crop(graph: Graph, node: Node) -> None:
    """Slices for the amounts below zero; the others are padded."""
    source, amounts, rank = operand(node), list(argument(node, "pad")), len(shape(node))
    for place, amount in enumerate(amounts):
        if amount < 0:
            dim = rank - 1 - place // 2
            begin, end = (-amount, None) if place % 2 == 0 else (0, amount)
            source = graph.call(aten.slice.Tensor, source, dim, begin, end, before=node, like=node)
    target: Any = node.target
    graph.replace(
        node, graph.call(target, source, [max(n, 0) for n in amounts], *node.args[2:], before=node, like=node)
    )


def _is_of_one_image(node: Node) -> bool:
    layer = Layer.of(node)
    if layer is not None and layer.kind == "conv":
        return len(shape(node)) == layer.dims + 1
    return node.target is aten.max_pool2d.default and len(shape(node)) == 3


def _batch(graph: Graph, node: Node) -> None:
    """A call on a batch of one; where it computes with codes, what is reshaped around it are codes, too."""
    target: Any = node.target
    options: Any = node.kwargs
    source, reader = operand(node), quantizer(node)
    image = _reshaped(graph, source, (1, *shape(source)), node)
    if is_dequantized(source):
        image = _rounded(graph, image, source, node)
    result = graph.call(target, image, *node.args[1:], before=node, like=node, **options)
    if (left := graph.fact(node, LEFT)) is not None:
        graph.set_fact(result, LEFT, left)
    if reader is not None:
        result = _rounded(graph, result, reader, node)
    graph.replace(node, _reshaped(graph, result, shape(node), node))


def _rounded(graph: Graph, source: Node, like: Node, node: Node) -> Node:
    """A value in codes of the grid of another quantizer, and back."""
    codes = graph.call(QUANTIZE, source, *like.args[1:], before=node)
    return graph.call(DEQUANTIZE, codes, *like.args[1:], before=node)


def _subtract_multiples(graph: Graph, node: Node) -> None:
    x, n = node.args[:2]
    whole = graph.call(aten.div.Tensor_mode, x, n, rounding_mode="floor", before=node, like=node)
    multiple = graph.call(aten.mul.Tensor, whole, n, before=node, like=node)
    graph.replace(node, graph.call(aten.sub.Tensor, x, multiple, before=node, like=node))

"""Arguments that torch's exporter leaves out, written as operators of their own before it comes.

    avg_pool(x, divisor_override=3)      ->   avg_pool(x) * factor            one number per window where windows differ
    mean(x, dtype=float32)               ->   mean(float32(x))                also sums, products, ...
    floor(x), x of integers              ->   x                               also ceil, trunc, round
    isnan(x), x of integers              ->   x != x                          also isinf
    antialiased resizing by factors      ->   matmul(matmul(A, x), B)

Each keeps every value as it is. An LSTM with projections, which the exporter writes wrongly, is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError

AVERAGES = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
IN_ANOTHER_TYPE = {
    aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default, aten.prod.dim_int, aten.prod.default,
    aten.cumsum.default, aten.cumprod.default, aten.softmax.int, aten.log_softmax.int,
}  # fmt: skip
ASK = {aten.isnan.default, aten.isinf.default}
ANTIALIASED = {aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec}
ROUND = {aten.floor.default, aten.ceil.default, aten.trunc.default, aten.round.default}


def write_out_arguments(graph: Graph) -> None:
    """Rewrite a graph in place; see the head of this file.

    Raises:
        InputError: an average pool has a divisor of its own, and the image no fixed size.
    """
    for node in graph.calls():
        if node.target in AVERAGES:
            _average(graph, node)
        elif node.target in IN_ANOTHER_TYPE:
            _convert_before(graph, node)
        elif node.target in ROUND and not node.meta["val"].dtype.is_floating_point:
            graph.replace(node, node.args[0])  # type: ignore[arg-type]
        elif node.target in ASK and not _source(node).meta["val"].dtype.is_floating_point:
            graph.replace(node, graph.call(aten.ne.Tensor, node.args[0], node.args[0], before=node))
        elif node.target in ANTIALIASED and Arguments(node)["scale_factors"] is not None:
            _resize(graph, node)
        elif node.target is aten.lstm.input:
            _refuse_projections(graph, node)


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _refuse_projections(graph: Graph, node: Node) -> None:
    hidden, cell = Arguments(node)["hx"]
    if shape(hidden)[-1] != shape(cell)[-1]:
        raise InputError(
            f"{graph.site(node)}: {node.target} with projections (proj_size={shape(hidden)[-1]}) cannot be written as ONNX; "
            "leave out proj_size"
        )


def _resize(graph: Graph, node: Node) -> None:
    """Rows and columns each by a matrix, which torch's own answers to the columns of the identity are."""
    arguments = Arguments(node)
    source, corners, scales = (arguments[name] for name in ("input", "align_corners", "scale_factors"))
    result = source
    for axis, scale in enumerate(scales):
        size, factors = shape(source)[2 + axis], [scale if axis == d else 1.0 for d in range(2)]
        if not isinstance(size, int):
            raise InputError(
                f"{graph.site(node)}: {node.target} by factors is written for images of fixed sizes, not {size}"
            )
        columns = torch.eye(size).reshape(size, 1, *([size, 1] if axis == 0 else [1, size]))
        beside = [size, 2] if axis == 0 else [2, size]  # torch's kernels answer wrongly for images of width 1
        target: Any = node.target
        answers = target(columns.expand(size, 1, *beside).contiguous(), None, corners, factors)
        matrix = (answers[:, 0, :, 0] if axis == 0 else answers[:, 0, 0]).contiguous()  # [in, out]
        weight = graph.add_constant(f"{node.name}_matrix", (matrix if axis else matrix.T).contiguous(), before=node)
        operands = (result, weight) if axis else (weight, result)
        result = graph.call(aten.matmul.default, *operands, before=node)
    graph.replace(node, result)


def _average(graph: Graph, node: Node) -> None:
    arguments = Arguments(node)
    divisor = arguments["divisor_override"]
    if divisor is None:
        return
    *given, _ = (arguments[name] for name in arguments)
    sizes = shape(given[0])[-AVERAGES[node.target] :]  # type: ignore[index]
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(
            f"{graph.site(node)}: {node.target} with divisor_override={divisor} is written for images of fixed sizes, not "
            f"{tuple(map(str, sizes))}; capture with fixed sizes, or multiply the mean yourself"
        )
    target: Any = node.target
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    factor: Tensor = target(ones, *given[1:], divisor) / target(ones, *given[1:])
    if bool((factor == factor.flatten()[0]).all()):
        factor = factor.flatten()[0]
    pooled = graph.call(target, *given, before=node)
    weight = graph.add_constant(f"{node.name}_factor", factor.to(node.meta["val"].dtype), before=node)
    graph.replace(node, graph.call(aten.mul.Tensor, pooled, weight, before=node))


def _convert_before(graph: Graph, node: Node) -> None:
    arguments = Arguments(node)
    source, dtype = arguments["self"], arguments["dtype"]
    if dtype is None or source.meta["val"].dtype == dtype:
        return
    converted = graph.call(aten.to.dtype, source, dtype, before=node)
    converted.meta["val"] = source.meta["val"].to(dtype)
    node.replace_input_with(source, converted)

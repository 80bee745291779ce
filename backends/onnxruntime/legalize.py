"""Last rewrites before ONNX: say things the way ONNX Runtime's integer kernels recognise them.

    the first convolution       reads whole words; see `graphopt.backends.onnxruntime.stem`
    global average pooling      GlobalAveragePool has an integer kernel, and in float one that reads what convolutions leave in
                                blocks of channels; of any other value ReduceMean is the faster, which needs no such blocks
    hard_sigmoid, pad, slice    between codes, choices of gates, parts of a split: see `graphopt.lowering.integers.legalize`
    linear of packed weights    becomes one call; see `graphopt.backends.onnxruntime.nbits`
    linear on [N, T, C]         becomes Gemm on [N T, C] between two reshapes; MatMul with a bias has no integer kernel
    equal calls                 become one, as the runtime would make them: what has readers on several grids is float then, and
                                whoever simulates the graph has to know

Each keeps every value as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import Node

from graphopt.backends.onnxruntime.nbits import multiply_packed
from graphopt.backends.onnxruntime.stem import read_whole_words
from graphopt.formats.blocks import DEQUANTIZE_BLOCKS
from graphopt.ir.calls import shape
from graphopt.ir.equal_calls import merge_equal_calls
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family
from graphopt.lowering.integers.legalize import (
    GLOBAL_AVERAGE_POOL,
    choose_codes,
    gate_codes,
    is_dequantized,
    move_codes,
    slice_parts,
)
from graphopt.lowering.qdq import Q

KEEP_BLOCKS = {  # what the runtime computes on its blocks of channels, and no trait of operators
    "relu", "clamp", "leaky_relu", "sigmoid", "hard_sigmoid", "hard_swish", "silu", "tanh", "mul", "add", "batch_norm",
    "concat", "max_pool", "average_pool",
}  # fmt: skip


def legalize(graph: Graph, *, plain: bool = False) -> None:
    """Rewrite a deployed graph in place; see the head of this file. `plain`: only what computes nothing on codes."""
    slice_parts(graph)
    for node in graph.calls():
        kind = family(node)
        if kind == "global_average_pool":
            _pool(graph, node)
        elif kind == "hard_sigmoid" and is_dequantized(node.args[0]) and not plain:
            gate_codes(graph, node)
        elif kind == "conv" and not plain:
            read_whole_words(graph, node)
        elif kind in ("pad", "slice") and is_dequantized(node.args[0]) and not plain:
            move_codes(graph, node)
        elif kind == "choose" and not plain:
            choose_codes(graph, node)
        elif kind == "linear" and node.args[1].target is DEQUANTIZE_BLOCKS:  # type: ignore[union-attr]
            multiply_packed(graph, node)
        elif kind == "linear" and len(shape(node)) > 2 and is_dequantized(node.args[0]):
            _flatten_rows(graph, node, plain=plain)
    merge_equal_calls(graph, torch.equal)
    graph.refresh()


def _pool(graph: Graph, node: Node) -> None:
    """Write a global average pool by what its input is; see the head of this file."""
    source: Any = node.args[0]
    origin = source
    while family(origin) in KEEP_BLOCKS:
        origin = origin.all_input_nodes[0]
    if is_dequantized(origin) or family(origin) == "conv":
        pooled = graph.call(GLOBAL_AVERAGE_POOL, source, before=node)
    else:
        pooled = graph.call(aten.mean.dim, source, list(range(2, len(shape(source)))), True, before=node)
    graph.replace(node, pooled)


def _flatten_rows(graph: Graph, node: Node, *, plain: bool) -> None:
    """`plain`: with quantizers around each reshape, as compilers want them, in place of reshaped codes."""
    source: Any = node.args[0]
    weight, *bias = node.args[1:]
    features, leading = shape(node)[-1], shape(node)[:-1]
    rows = graph.call(aten.flatten.using_ints, source, 0, len(leading) - 1, before=node)
    if plain:
        rows = _on_grid(graph, rows, source.args[1:], before=node)
    product = graph.call(aten.linear.default, rows, weight, *bias, before=node)
    readers = list(node.users)
    quantized = len(readers) == 1 and readers[0].target is Q.quantize_per_tensor.default
    if quantized and plain:
        product = _on_grid(graph, product, readers[0].args[1:], before=node)
    elif quantized:
        quantizer = readers[0]  # keep Gemm next to its quantizer: reshape the codes instead
        codes = graph.call(quantizer.target, product, *quantizer.args[1:], before=quantizer)
        graph.replace(quantizer, _unflatten(graph, codes, source, leading, features, before=quantizer))
        graph.module.graph.erase_node(node)
        return
    graph.replace(node, _unflatten(graph, product, source, leading, features, before=node))


def _on_grid(graph: Graph, value: Node, grid: tuple[Any, ...], *, before: Node) -> Node:
    codes = graph.call(Q.quantize_per_tensor.default, value, *grid, before=before)
    return graph.call(Q.dequantize_per_tensor.default, codes, *grid, before=before)


def _unflatten(graph: Graph, rows: Node, like: Node, leading: tuple[Any, ...], features: int, *, before: Node) -> Node:
    """[rows, features] -> [*leading, features], at most one leading size being free."""
    free = [d for d, size in enumerate(leading) if not isinstance(size, int)]
    if len(free) <= 1:
        sizes: list[Any] = [-1 if d in free else size for d, size in enumerate(leading)]
    else:
        sizes = [
            graph.call(aten.sym_size.int, like, d, before=before) if d in free else s for d, s in enumerate(leading)
        ]
    return graph.call(aten.reshape.default, rows, [*sizes, features], before=before)

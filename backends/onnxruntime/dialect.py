"""Last rewrites before ONNX: say things the way ONNX Runtime's integer kernels recognise them.

    the first convolution       reads whole words; see `graphopt.backends.onnxruntime.stem`
    global average pooling      GlobalAveragePool has an integer kernel, and in float one that reads what convolutions leave in
                                blocks of channels; of any other value ReduceMean is the faster, which needs no such blocks
    hard_sigmoid between codes  hard_sigmoid(x) = clamp(x + 3, 0, 6) / 6 has no integer kernel. Where x and its gate share their
                                codes (see `graphopt.passes.quantize.gates`) a clip of the codes does it; else addition, which
                                has a kernel: the sum is quantized on a grid six times as wide, whose ends do the clamping, and
                                its codes are then read on the narrow grid, which does the division
    linear of packed weights    becomes one call; see `graphopt.backends.onnxruntime.nbits`
    linear on [N, T, C]         becomes Gemm on [N T, C] between two reshapes; MatMul with a bias has no integer kernel
    parts of a split            become slices; the exporter would make a sequence of tensors
    flatten behind the batch    with its sizes as numbers, so that no shape is computed at run time
    attention of other ranks    [N, M, H, L, E] or [N, L, E] becomes [N M, H, L, E], the one form the exporter knows
    pad, slice between codes    are applied to the codes, padding with the code of zero; the runtime would pad in float

Each keeps every value as it is.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.onnxruntime.nbits import multiply_packed
from graphopt.backends.onnxruntime.stem import read_whole_words
from graphopt.blocks import DEQUANTIZE_BLOCKS
from graphopt.deploy import Q, storage
from graphopt.graph import Graph
from graphopt.ops import argument, aten, family, shape, value

KEEP_BLOCKS = {
    "relu", "clamp", "leaky_relu", "sigmoid", "hard_sigmoid", "hard_swish", "silu", "tanh", "mul", "add", "batch_norm",
    "concat", "max_pool", "average_pool",
}  # fmt: skip
DEQUANTIZES = (Q.dequantize_per_tensor.default, Q.dequantize_per_channel.default)


@torch.library.custom_op("graphopt::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over every dimension behind the channels, kept with size 1."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:2], *[1] * (x.dim() - 2)])


@torch.library.custom_op("graphopt::clip_codes", mutates_args=())
def clip_codes(codes: Tensor, low: int, high: int) -> Tensor:
    """Codes clipped to [low, high], in their own type."""
    return codes.clamp(low, high)


@clip_codes.register_fake
def _(codes: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(codes)


CLIP_CODES: Any = torch.ops.graphopt.clip_codes.default
ATTENTION = aten.scaled_dot_product_attention.default
GLOBAL_AVERAGE_POOL: Any = torch.ops.graphopt.global_average_pool.default


def speak(graph: Graph) -> None:
    """Rewrite a deployed graph in place; see the head of this file."""
    _slice_parts(graph)
    for node in graph.calls():
        kind = family(node)
        if kind == "global_average_pool":
            _pool(graph, node)
        elif kind == "hard_sigmoid" and is_dequantized(node.args[0]):
            _gate_codes(graph, node)
        elif node.target is ATTENTION:
            _attend_in_four_dimensions(graph, node)
        elif kind == "conv":
            read_whole_words(graph, node)
        elif node.target is aten.flatten.using_ints:
            _flatten_by_numbers(graph, node)
        elif kind in ("pad", "slice") and is_dequantized(node.args[0]):
            _move_codes(graph, node)
        elif kind == "linear" and node.args[1].target is DEQUANTIZE_BLOCKS:  # type: ignore[union-attr]
            multiply_packed(graph, node)
        elif kind == "linear" and len(shape(node)) > 2 and is_dequantized(node.args[0]):
            _flatten_rows(graph, node)
    for node in {n: None for n in graph.outputs if n.op == "placeholder"}:  # else ONNX would give it the output's name
        copied = graph.call(aten.clone.default, node, before=graph.output)
        graph.output.replace_input_with(node, copied)
    graph.refresh()


def is_dequantized(value: Any) -> bool:
    return isinstance(value, Node) and value.target in DEQUANTIZES


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


def _slice_parts(graph: Graph) -> None:
    """split -> getitem: a slice."""
    for part in graph.calls(operator.getitem):
        source: Any = part.args[0]
        if family(source) != "split":
            continue
        dim = argument(source, "dim")
        sizes = [piece.shape[dim] for piece in value(source)]
        index: Any = part.args[1]
        if not all(isinstance(size, int) for size in sizes):
            continue
        start = sum(sizes[: index % len(sizes)])
        slice_ = (aten.slice.Tensor, source.args[0], dim, start, start + sizes[index])
        graph.replace(part, graph.call(*slice_, before=part))


def _attend_in_four_dimensions(graph: Graph, node: Node) -> None:
    """Other numbers of dimensions than four: the leading ones are joined, or one is put in."""
    query, key, values = node.args[:3]
    mask, rank = argument(node, "attn_mask"), len(shape(query))  # type: ignore[arg-type]
    lead = shape(query)[: rank - 3]  # type: ignore[arg-type]
    masked = 0 if mask is None else len(shape(mask))
    if rank == 4 or rank < 3 or not all(isinstance(size, int) for size in lead[1:]) or masked > 3:
        return
    if any(tuple(shape(other)[: rank - 3]) != tuple(lead) for other in (key, values)):  # type: ignore[arg-type]
        return

    def four(x: Any) -> Node:
        if rank == 3:
            return graph.call(aten.unsqueeze.default, x, 1, before=node)
        return graph.call(aten.flatten.using_ints, x, 0, rank - 4, before=node)

    if rank == 3 and masked == 3:
        mask = graph.call(aten.unsqueeze.default, mask, 1, before=node)
    rest = (mask, *node.args[4:]) if mask is not None or len(node.args) > 4 else ()
    options: dict[str, Any] = {name: given for name, given in node.kwargs.items() if name != "attn_mask"}
    attended = graph.call(ATTENTION, four(query), four(key), four(values), *rest, before=node, **options)
    if rank == 3:
        back = graph.call(aten.squeeze.dim, attended, 1, before=node)
    else:
        back = graph.call(aten.unflatten.int, attended, 0, [-1, *lead[1:]], before=node)
    graph.replace(node, back)


def _flatten_by_numbers(graph: Graph, node: Node) -> None:
    batch, *sizes = shape(node)
    if isinstance(batch, int) or not all(isinstance(size, int) for size in sizes) or argument(node, "start_dim") != 1:
        return
    graph.replace(node, graph.call(aten.reshape.default, node.args[0], [-1, *sizes], before=node))


def _move_codes(graph: Graph, node: Node) -> None:
    """dequantize -> move -> quantize on one grid: move the codes."""
    source: Node = node.args[0]  # type: ignore[assignment]
    readers = list(node.users)
    same = [r.target is Q.quantize_per_tensor.default and r.args[1:] == source.args[1:] for r in readers]
    if not readers or not all(same) or source.args[5] not in (torch.int8, torch.uint8):
        return  # wider codes have no kernels for it
    codes, zero_point = source.args[0], source.args[2]
    if family(node) == "pad":
        moved = graph.call(aten.constant_pad_nd.default, codes, argument(node, "pad"), zero_point, before=node)
    else:
        options: Any = node.kwargs
        moved = graph.call(node.target, codes, *node.args[1:], before=node, **options)
    for reader in readers:
        graph.replace(reader, moved)
    graph.module.graph.erase_node(node)


def _gate_codes(graph: Graph, node: Node) -> None:
    """dequantize -> hard_sigmoid -> quantize."""
    reader: Any = next(iter(node.users))
    source: Any = node.args[0]
    if (
        len(node.users) != 1
        or reader.target is not Q.quantize_per_tensor.default
        or len(source.args) != len(reader.args)
    ):
        return
    codes, scale, zero_point, *_ = source.args
    _, gate_scale, gate_zero, low, high, dtype = reader.args
    if gate_zero != low:
        return
    starts_at_minus_3 = math.isclose((zero_point - low) * scale, 3, rel_tol=1e-5)
    if not (starts_at_minus_3 and math.isclose(gate_scale * 6, scale, rel_tol=1e-5)):
        three = graph.add_constant(f"{node.name}_three", torch.tensor(high, dtype=storage(low, high)), before=node)
        grid = (3 / (high - low), low, low, high, dtype)
        three = graph.call(Q.dequantize_per_tensor.default, three, *grid, before=node)
        total = graph.call(aten.add.Tensor, source, three, before=node)
        codes = graph.call(Q.quantize_per_tensor.default, total, 6 * gate_scale, low, low, high, dtype, before=node)
    end = low + round(1 / gate_scale)
    if end < high:
        codes = graph.call(CLIP_CODES, codes, low, end, before=node)
    graph.replace(reader, codes)
    graph.module.graph.erase_node(node)


def _flatten_rows(graph: Graph, node: Node) -> None:
    source, weight, *bias = node.args
    features, leading = shape(node)[-1], shape(node)[:-1]
    rows = graph.call(aten.flatten.using_ints, source, 0, len(leading) - 1, before=node)
    product = graph.call(aten.linear.default, rows, weight, *bias, before=node)
    readers = list(node.users)
    if len(readers) == 1 and readers[0].target is Q.quantize_per_tensor.default:
        quantizer = readers[0]  # keep Gemm next to its quantizer: reshape the codes instead
        codes = graph.call(quantizer.target, product, *quantizer.args[1:], before=quantizer)
        graph.replace(quantizer, _unflatten(graph, codes, source, leading, features, before=quantizer))  # type: ignore[arg-type]
        graph.module.graph.erase_node(node)
    else:
        graph.replace(node, _unflatten(graph, product, source, leading, features, before=node))  # type: ignore[arg-type]


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

"""Rewrites of a deployed graph that say with codes what integer kernels can be found for; each keeps every value as it is.

    hard_sigmoid between codes  hard_sigmoid(x) = clamp(x + 3, 0, 6) / 6 has no integer kernel. Where x and its gate share their
                                codes (see `graphopt.passes.quantization.gates`) a clip of the codes does it; else addition, which
                                has a kernel: the sum is quantized on a grid six times as wide, whose ends do the clamping, and
                                its codes are then read on the narrow grid, which does the division
    parts of a split            become slices
    choice of a gate            between codes, all on one grid
    pad, slice between codes    are applied to the codes, padding with the code of zero

A backend applies those that its runtime needs, before kernels are looked for.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import argument, operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family
from graphopt.lowering.qdq import Q, storage

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
GLOBAL_AVERAGE_POOL: Any = torch.ops.graphopt.global_average_pool.default


def is_dequantized(value: Any) -> bool:
    return isinstance(value, Node) and value.target in DEQUANTIZES


def slice_parts(graph: Graph) -> None:
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


def move_codes(graph: Graph, node: Node) -> None:
    """dequantize -> move -> quantize on one grid: move the codes."""
    source = operand(node)
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


def choose_codes(graph: Graph, node: Node) -> None:
    """dequantize, dequantize -> where -> quantize on one grid: choose between the codes."""
    condition, *sides = node.args
    readers = list(node.users)
    grids = [list(side.args[1:]) for side in sides if is_dequantized(side)]  # type: ignore[union-attr]
    grids += [list(reader.args[1:]) for reader in readers if reader.target is Q.quantize_per_tensor.default]
    if not readers or len(grids) != 2 + len(readers) or any(grid != grids[0] for grid in grids):
        return
    if grids[0][4] not in (torch.int8, torch.uint8):
        return
    codes = [operand(side) for side in sides]  # type: ignore[arg-type]
    chosen = graph.call(aten.where.self, condition, *codes, before=node)
    for reader in readers:
        graph.replace(reader, chosen)
    graph.module.graph.erase_node(node)


def gate_codes(graph: Graph, node: Node) -> None:
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

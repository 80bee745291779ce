"""The quantized form that XNNPACK takes, as a rewrite of a deployed graph; the simulation finds its kernels in the same form.

    codes              signed bytes: unsigned codes and their zero points move down by 128
    weights            a scale for each output channel, codes in [-127, 127] around 0
    layers             between codes; what does not qualify computes in float, and says why (`unfit`)
    clips              of a value before it is quantized: the first and last code that are left
    moves, concat      on the grid of their result: operands on another one are quantized to that first
    mean of an image   a global average pool, whatever it was written as
    parts of a split   slices

Every value stays what it is, up to rounding. Quantizers still are `quantized_decomposed` operators, so that the graph can be run
and compared with the one before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import argument, operand, shape
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, WEIGHT, Layer
from graphopt.ir.ops import aten, clip_of, family
from graphopt.lowering.integers.arithmetic import f32
from graphopt.lowering.integers.fusion import DEQUANTIZE, QUANTIZE, quantizer
from graphopt.lowering.integers.legalize import GLOBAL_AVERAGE_POOL, is_dequantized, slice_parts
from graphopt.lowering.integers.xnnpack import LEAST_PRODUCT, LEAST_RATIO, MOST_RATIO, quantize
from graphopt.lowering.qdq import Q, QuantizationParameters
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

LOW, HIGH = -128, 127  # codes of values
MOST_WEIGHT = 127  # kernels for ARM add products of two codes in 16 bits, which 128 * 128 leaves
SHARING = ("concat", "max_pool", "reshape", "transpose", "slice")  # kernels that hand codes on, on one grid
JOINS = ("add", "sub", "mul")


def legalize(graph: Graph) -> None:
    """Rewrite a deployed graph in place; see the head of this file.

    Raises:
        InputError: values have codes of more than 8 bits; names the first.
    """
    slice_parts(graph)
    _sign_codes(graph)
    _narrow_clips(graph)
    for node in graph.calls():
        layer = Layer.of(node)
        if layer is not None and is_dequantized(layer.weight):
            _fit_layer(graph, layer)
        elif family(node) in SHARING:
            _share_grid(graph, node)
        elif family(node) in JOINS:
            _check_ratios(graph, node)
        elif family(node) == "global_average_pool" or _is_image_mean(node):
            _pool(graph, node)
    graph.refresh()


# ---- Codes ----------------------------------------------------------------------------------------------------------


def _sign_codes(graph: Graph) -> None:
    for node in graph.calls(QUANTIZE, DEQUANTIZE):
        if graph.is_constant(operand(node)) and _reads_weight(node):
            continue
        grid = QuantizationParameters.of(node)
        if grid.dtype not in (torch.uint8, torch.int8):
            raise InputError(
                f"{graph.site(operand(node))}: its codes are {dtype_name(grid.dtype)}, and XNNPACK's kernels take int8; "
                "quantize values to 8 bits, or use a target of ONNX Runtime or TVM (arm, tvm-arm64)"
            )
        if grid.dtype == torch.int8:
            continue
        low, high, zero = grid.quant_min - 128, grid.quant_max - 128, grid.zero_point - 128
        node.args = (node.args[0], grid.scale, zero, low, high, torch.int8)
        source = operand(node)
        if graph.is_constant(source) and graph.tensor(source).dtype == torch.uint8:
            shifted = (graph.tensor(source).int() - 128).to(torch.int8)
            node.update_arg(0, graph.add_constant(f"{source.target}_signed", shifted, before=node))


def _reads_weight(node: Node) -> bool:
    """Is what a constant is dequantized to the weight or bias of layers?"""
    return bool(node.users) and all(
        Layer.of(reader) is not None and node in (reader.args[WEIGHT], Layer.of(reader).bias)  # type: ignore[union-attr]
        for reader in node.users
    )


def _narrow_clips(graph: Graph) -> None:
    """quantize(clip(x)) => quantize(x) with fewer codes: rounding keeps order, so the codes of the ends are the last ones."""
    for node in graph.calls(QUANTIZE):
        source, grid = operand(node), QuantizationParameters.of(node)
        ends = clip_of(source)
        if ends is None or len(source.users) != 1:
            continue
        wide = grid._replace(quant_min=LOW, quant_max=HIGH)
        low, high = (int(quantize(torch.tensor(float(end)), *wide)) for end in ends)
        low, high = max(low, grid.quant_min), min(high, grid.quant_max)
        node.args = (operand(source), *grid._replace(quant_min=min(low, high), quant_max=high))
        graph.module.graph.erase_node(source)


# ---- Layers ---------------------------------------------------------------------------------------------------------


def unfit(graph: Graph, layer: Layer) -> str:
    """Why XNNPACK has no integer kernel for a layer with a weight of codes; empty where it has one.

    Its weight, its bias and its input are looked at, and what reads it.
    """
    if layer.kind == "conv_transpose":
        return "there is no integer kernel for transposed convolutions"
    if not is_dequantized(layer.input) or layer.input.target is not DEQUANTIZE:
        return "its input is not quantized"
    reader = quantizer(layer.node)
    if reader is None:
        return "its result is read in float, and integer kernels answer in codes alone"
    if layer.bias is not None and not is_dequantized(layer.bias):
        return "its bias is not an integer"
    if layer.weight.target is Q.dequantize_per_channel.default and layer.weight.args[3] != 0:
        return "its weights have a scale for each input channel"
    codes, scale = signed_weight(graph, layer)
    if codes is None:
        return f"codes of its weights leave [-{MOST_WEIGHT}, {MOST_WEIGHT}] around their zero points"
    steps = f32(float(layer.input.args[1])) * scale  # type: ignore[arg-type]
    if float(torch.minimum(steps, scale).min()) < torch.finfo(torch.float32).tiny:
        return "a step of its sums is too small for a normal float32"
    ratio = steps / f32(float(reader.args[1]))  # type: ignore[arg-type]
    if float(ratio.max()) >= MOST_RATIO:
        return f"a step of its sums is {float(ratio.max()):.3g} steps of its result, and kernels take less than {MOST_RATIO:.0f}"
    return ""


def signed_weight(graph: Graph, layer: Layer) -> tuple[Tensor | None, Tensor]:
    """Codes of a weight around 0 (int8; None where they leave its range) and a scale for each output channel."""
    stored, scale, zero = layer.weight.args[:3]
    codes = graph.tensor(stored)  # type: ignore[arg-type]
    s, z = (graph.tensor(p) if isinstance(p, Node) else torch.tensor(p) for p in (scale, zero))
    along = [-1, *[1] * (codes.dim() - 1)]
    around = codes.int() - (z.int().reshape(along) if z.dim() else z.int())
    fits = int(around.abs().max()) <= MOST_WEIGHT if around.numel() else True
    return (around.to(torch.int8) if fits else None), s.float().expand(codes.shape[0]).contiguous()


def _fit_layer(graph: Graph, layer: Layer) -> None:
    if why := unfit(graph, layer):
        _leave(graph, layer, why)
        return
    call: Any = layer.weight
    codes, scale = signed_weight(graph, layer)
    plain = (-MOST_WEIGHT, MOST_WEIGHT, torch.int8)
    assert codes is not None
    if call.args[3:] == (0, *plain) and torch.equal(codes, graph.tensor(call.args[0])):
        return
    name = f"{call.args[0].target}_signed"
    stored = [
        (name, codes),
        (f"{name}_scale", scale),
        (f"{name}_zero_point", torch.zeros_like(scale, dtype=torch.int32)),
    ]
    nodes = [graph.add_constant(key, value, before=call) for key, value in stored]
    weight = graph.call(Q.dequantize_per_channel.default, *nodes, 0, *plain, before=call)
    weight.meta["val"] = call.meta["val"]
    layer.node.update_arg(WEIGHT, weight)


def _leave(graph: Graph, layer: Layer, why: str) -> None:
    """Compute a layer in float, with the weights that its codes stand for."""
    node = layer.node
    if graph.fact(node, LEFT) is None:
        graph.set_fact(node, LEFT, why)
    for position, source in ((WEIGHT, layer.weight), (BIAS, layer.bias)):
        if is_dequantized(source) and graph.is_constant(operand(source)):  # type: ignore[arg-type]
            values = graph.tensor(source)  # type: ignore[arg-type]
            name = f"{operand(source).target}_float"  # type: ignore[arg-type]
            node.update_arg(position, graph.add_constant(name, values, before=node))


# ---- Other operators ------------------------------------------------------------------------------------------------


def _check_ratios(graph: Graph, node: Node) -> None:
    """Keep a sum or product in float where the library refuses the ratio of its scales: behind a clip that changes nothing, an
    operand is no longer one of codes."""
    reader = quantizer(node)
    sides = [side for side in node.args[:2] if is_dequantized(side)]
    if reader is None or len(sides) < 2:
        return
    first, second = (float(f32(side.args[1])) for side in sides)  # type: ignore[union-attr, arg-type]
    result = float(f32(reader.args[1]))  # type: ignore[arg-type]
    product = family(node) == "mul"
    ratios = [first * second / result] if product else [first / result, second / result]
    least = LEAST_PRODUCT if product else LEAST_RATIO
    if not all(least <= ratio < MOST_RATIO for ratio in ratios):
        shown = " and ".join(f"{ratio:.3g}" for ratio in ratios)
        why = f"its steps are {shown} steps of its result, and kernels take {least:.3g} to {MOST_RATIO:.0f}"
        graph.set_fact(node, LEFT, why)
        value: Any = sides[0]
        codes = QuantizationParameters.of(value)
        ends = [float((f32(q) - codes.zero_point) * f32(codes.scale)) for q in (LOW, HIGH)]
        node.update_arg(0, graph.call(aten.clamp.default, value, *ends, before=node, like=value))


def _share_grid(graph: Graph, node: Node) -> None:
    """Quantize the operands of a move to the grid of its result, where they are on another one."""
    reader = quantizer(node)
    values: Any = node.args[0] if family(node) == "concat" else [node.args[0]]
    if reader is None or not all(is_dequantized(value) and value.target is DEQUANTIZE for value in values):
        return
    grid = QuantizationParameters.of(reader)._replace(quant_min=LOW, quant_max=HIGH)
    others = [value for value in dict.fromkeys(values) if not _is_on(value, grid)]
    on_grid = {value: _requantized(graph, value, grid, node) for value in others}
    moved = [on_grid.get(value, value) for value in values]
    node.update_arg(0, moved if family(node) == "concat" else moved[0])


def _is_on(value: Node, grid: QuantizationParameters) -> bool:
    return value.args[1:3] == (grid.scale, grid.zero_point)


def _requantized(graph: Graph, value: Node, grid: QuantizationParameters, before: Node) -> Node:
    codes = graph.call(QUANTIZE, value, *grid, before=before)
    codes.meta["val"] = operand(value).meta["val"]
    result = graph.call(DEQUANTIZE, codes, *grid, before=before)
    result.meta["val"] = value.meta["val"]
    return result


def _is_image_mean(node: Node) -> bool:
    if node.target is not aten.mean.dim or argument(node, "dtype") is not None:
        return False
    dims = argument(node, "dim") or []
    return len(shape(operand(node))) == 4 and sorted(d % 4 for d in dims) == [2, 3]


def _pool(graph: Graph, node: Node) -> None:
    """Over a whole image of two dimensions there is a kernel; other means are left to float."""
    source: Any = operand(node)
    rank = len(shape(source))
    if rank != 4:
        pooled = graph.call(aten.mean.dim, source, list(range(2, rank)), True, before=node, like=node)
        graph.replace(node, pooled)
        return
    reader, keeps = quantizer(node), node.target is not aten.mean.dim or bool(argument(node, "keepdim"))
    pooled = graph.call(GLOBAL_AVERAGE_POOL, source, before=node, like=node)
    if keeps:
        graph.replace(node, pooled)
        return
    if reader is not None:
        grid = QuantizationParameters.of(reader)
        codes = graph.call(QUANTIZE, pooled, *grid, before=node)
        pooled = graph.call(DEQUANTIZE, codes, *grid, before=node)
    graph.replace(node, graph.call(aten.flatten.using_ints, pooled, 1, before=node, like=node))

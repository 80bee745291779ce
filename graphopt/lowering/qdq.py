"""From the simulated to the deployed form: fake-quantize nodes become integer constants and quantize/dequantize pairs.

    fake_quantize(weight)   ->  dequantize(codes)                 codes stored as int8 (int32 for biases)
                            ->  dequantize_blocks(codes)          each block has a scale: packed, see `graphopt.formats.blocks`
    fake_quantize(value)    ->  dequantize(quantize(value))
    fake_quantize(relu(v))  ->  dequantize(quantize(v))           where the grid's own ends clip as the activation does, to a code

Signs times a scale (`graphopt.formats.signs`) are whole multiples of it: -1, 0 and 1, or what two scales make of them.

    fake_quantize_signs(weight)   ->  dequantize(codes)                         codes -below, 0, above, as int8
    fake_quantize_signs(value)    ->  dequantize(quantize(to_signs(value)))     around 0, or around `below` in unsigned bytes

Formats that no integer operator has (logarithms, floats, block floating point, codebooks) become float; their layers say why:

    fake_quantize_log(weight)  ->  the rounded weight, in float       (`graphopt.artifacts.packing` stores its codes)
    fake_quantize_log(value)   ->  the value itself

Only for runtimes that compute in float16 (`half=True`), those numbers are kept:

    fake_quantize_float(weight)   ->  float(weight in float16)
    fake_quantize_float(value)    ->  float(half(value))

A clip with an upper end per channel (what equalization makes of ReLU6) has no integer kernel, but saturation is one. With e the
code of a channel's end and m the last code of the grid, both in codes,

    min(q, e) = sat(q + (m - e)) - (m - e)

so two saturating additions do it. Where the value comes straight from a layer, `Quantize` has put the first addition into the
layer's bias (`bias = fake_quantize(b + shift) - shift`), and one addition remains, which also clips at zero.

But for values in such formats, both forms compute the same. Backends call this first; the simulated graph is left as it is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FLOAT16_FORMATS, in_blocks, quantize
from graphopt.formats.blocks import DEQUANTIZE_BLOCKS, pack_weight
from graphopt.formats.signs import multiples
from graphopt.ir.calls import is_cast_of_bytes, operand
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, Layer
from graphopt.ir.masks import bake
from graphopt.ir.ops import aten, clip_of, family, info
from graphopt.ir.quantizers import UniformQuantizer, is_signs, is_uniform, quantizer_of, quantizers
from graphopt.ir.scales import end_codes
from graphopt.lowering.bias_grids import check_biases
from graphopt.lowering.to_signs import TO_SIGNS

# Defined by torch.ao: deprecated, but there in torch 2.14.1, and importing it does not warn. Operators of our own with these
# names would make torch.ao fail wherever it is imported later, as a process registers an operator once.
Q: Any = torch.ops.quantized_decomposed


def deploy(graph: Graph, *, half: bool = False) -> Graph:
    """A deployed copy of a simulated graph; a graph without quantizers, such as one deployed before, is copied unchanged.

    Args:
        half: the runtime computes in float16. Without subnormal numbers, constants are flushed here, values by the device.

    Raises:
        InputError: a bias is not on the grid of its layer's sums.
    """
    check_biases(graph)
    deployed = graph.clone(share_weights=True).eval()
    baked = bake(deployed)
    found = quantizers(deployed)
    unsigned = _has_unsigned_bytes(deployed, found)
    packed: dict[tuple[Any, ...], Node] = {}
    for node in found:
        if half and not is_uniform(node) and quantizer_of(deployed, node).format in FLOAT16_FORMATS:
            _keep_half(deployed, node)
        elif is_signs(node) and deployed.is_constant(_evaluated(deployed, operand(node))):
            _store_signs(deployed, node)
        elif is_signs(node) and quantizer_of(deployed, node).axis < 0:
            _sign_values(deployed, node, unsigned=unsigned)
        elif not is_uniform(node):
            _leave_in_float(deployed, node)
        elif in_blocks(node):
            _pack(deployed, node, packed)
        elif deployed.is_constant(_evaluated(deployed, node.args[0])):  # type: ignore[arg-type]
            _store_codes(deployed, node)
        else:
            _quantize_value(deployed, node, unsigned=unsigned)
    if found or baked:
        deployed.refresh()
    return deployed


def _leave_in_float(graph: Graph, node: Node) -> None:
    """Round a constant for good, or go past a value's quantizer; layers around it learn why they are float."""
    source = operand(node)
    quantizer, constant = quantizer_of(graph, node), graph.is_constant(source)
    what = "its weights are" if constant else "a value beside it is"
    producer = source
    while info(producer).fusable:
        producer = operand(producer)
    for layer in [producer, *node.users]:
        if Layer.of(layer) is not None and graph.fact(layer, LEFT) is None:
            graph.set_fact(layer, LEFT, f"{what} in {quantizer.format}, which has no integer operator")
    if constant:
        name = f"{source.target}_rounded"
        graph.replace(node, graph.add_constant(name, quantizer(graph.tensor(source)), before=node))
    else:
        graph.replace(node, source)


def _keep_half(graph: Graph, node: Node) -> None:
    source = operand(node)
    if graph.is_constant(source):
        rounded = quantizer_of(graph, node)(graph.tensor(source)).half()
        narrow = graph.add_constant(f"{source.target}_half", rounded, before=node)
    else:
        narrow = graph.call(aten.to.dtype, source, torch.float16, before=node)
    graph.replace(node, graph.call(aten.to.dtype, narrow, torch.float32, before=node))


def _evaluated(graph: Graph, source: Node) -> Node:
    """A call that reads only constants, as a constant (a layer's shifted bias)."""
    if not source.all_input_nodes or not all(map(graph.is_constant, source.all_input_nodes)):
        return source
    constant = graph.add_constant(source.name, graph.tensor(source), before=source)
    graph.replace(source, constant)
    return constant


class QuantizationParameters(NamedTuple):
    """The arguments of quantize_per_tensor and dequantize_per_tensor."""

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int
    dtype: torch.dtype

    @classmethod
    def of(cls, node: Node) -> QuantizationParameters:
        """Those of such a call, whose arguments behind the first they are."""
        parameters: Any = node.args[1:]
        return cls(*parameters)


def storage(quant_min: int, quant_max: int, *, unsigned: bool = False) -> torch.dtype:
    """The smallest integer type that holds these codes; of two as small, the signed one, unless `unsigned`."""
    bytes_ = (torch.uint8, torch.int8) if unsigned else (torch.int8, torch.uint8)
    for dtype in (*bytes_, torch.int16, torch.uint16, torch.int32):
        info = torch.iinfo(dtype)
        if info.min <= quant_min and quant_max <= info.max:
            return dtype
    raise ValueError(f"no integer type holds [{quant_min}, {quant_max}]")


def _parameters(graph: Graph, node: Node) -> tuple[Tensor, Tensor, int, int, int]:
    found = UniformQuantizer.of(node)
    assert found is not None
    return graph.tensor(found.scale), graph.tensor(found.zero_point), found.low, found.high, found.axis


def _store_codes(graph: Graph, node: Node) -> None:
    scale, zero_point, quant_min, quant_max, axis = _parameters(graph, node)
    source = operand(node)
    codes = quantize(graph.tensor(source), scale, zero_point, quant_min, quant_max, axis)
    _put_codes(graph, node, codes, scale, zero_point, (quant_min, quant_max), axis)


def _store_signs(graph: Graph, node: Node) -> None:
    found = quantizer_of(graph, node)
    scale, _, below, above = found.parameters
    codes = multiples(graph.tensor(operand(node)), found.parameters, found.axis)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    _put_codes(graph, node, codes, scale, zero, (-int(below.max()), int(above.max())), found.axis)


def _put_codes(
    graph: Graph, node: Node, codes: Tensor, scale: Tensor, zero_point: Tensor, ends: tuple[int, int], axis: int
) -> None:
    """Let a constant be the codes, dequantized."""
    dtype, name = storage(*ends), f"{operand(node).target}_codes"
    constant = graph.add_constant(name, codes.to(dtype), before=node)
    if scale.dim():
        s = graph.add_constant(f"{name}_scale", scale, before=node)
        z = graph.add_constant(f"{name}_zero_point", zero_point.int(), before=node)  # bytes would wrap around
        call: tuple[Any, ...] = (Q.dequantize_per_channel.default, constant, s, z, axis)
    else:
        call = (Q.dequantize_per_tensor.default, constant, float(scale), int(zero_point))
    graph.replace(node, graph.call(*call, *ends, dtype, before=node))


def _sign_values(graph: Graph, node: Node, *, unsigned: bool) -> None:
    """In unsigned bytes zero is the code `below`."""
    scale, threshold, below, above = (float(p) for p in quantizer_of(graph, node).parameters)
    low, high = -int(below), int(above)
    zero = int(below) if unsigned else 0
    grid = QuantizationParameters(
        scale, zero, low + zero, high + zero, storage(low + zero, high + zero, unsigned=unsigned)
    )
    ends = (float(f * torch.tensor(scale)) for f in (low, high))
    signs = graph.call(TO_SIGNS, operand(node), threshold, *ends, before=node, like=node)
    signs.meta["val"] = node.meta["val"]
    graph.replace(node, _round_trip(graph, signs, grid, before=node))


def _pack(graph: Graph, node: Node, packed: dict[tuple[Any, ...], Node]) -> None:
    """Store the codes of a weight in blocks, once for all layers that read it on this grid."""
    source, scale, zero_point, _, quant_max, _, block = arguments = node.args
    if arguments not in packed:
        bits = quant_max.bit_length()  # type: ignore[union-attr]
        weight, s, z = (graph.tensor(a) for a in (source, scale, zero_point))  # type: ignore[arg-type]
        codes, points = pack_weight(weight, s, z, bits, block)  # type: ignore[arg-type]
        name = f"{source.target}_codes"  # type: ignore[union-attr]
        constants = [graph.add_constant(name, codes, before=node), graph.add_constant(f"{name}_scale", s, before=node)]
        z_node = graph.add_constant(f"{name}_zero_point", points, before=node) if points is not None else None
        packed[arguments] = graph.call(DEQUANTIZE_BLOCKS, *constants, z_node, bits, weight.shape[1], before=node)
    graph.replace(node, packed[arguments])


def _has_unsigned_bytes(graph: Graph, found: list[Node]) -> bool:
    """Whether some activation has codes above 127. Few bits beside it are unsigned bytes then, too: kernels take one type."""
    activations = [node for node in found if is_uniform(node) and not graph.is_constant(operand(node))]
    return any(_parameters(graph, node)[3] in range(128, 256) for node in activations)


def _quantize_value(graph: Graph, node: Node, *, unsigned: bool) -> None:
    scale, zero_point, quant_min, quant_max, _ = _parameters(graph, node)
    dtype = storage(quant_min, quant_max, unsigned=unsigned)
    grid = QuantizationParameters(float(scale), int(zero_point), quant_min, quant_max, dtype)
    source = operand(node)
    if family(source) == "channel_clamp" and len(source.users) == 1:
        inner, ends = _without_clip(source.args[0], grid)  # type: ignore[arg-type]
        if inner is not source.args[0] and ends == (grid.quant_min, grid.quant_max):
            graph.replace(
                node,
                _clip_channels(
                    graph, node, inner, end_codes(graph, source, scale, zero_point, quant_min, quant_max), grid
                ),
            )
            return
    inner, ends = _without_clip(source, grid)
    graph.replace(node, _round_trip(graph, inner, grid, before=node, ends=ends))


def _round_trip(
    graph: Graph, value: Node, grid: QuantizationParameters, *, before: Node, ends: tuple[int, int] | None = None
) -> Node:
    """`ends`: the first and last code there are, where the grid has more."""
    low, high = ends or (grid.quant_min, grid.quant_max)
    narrow = grid._replace(quant_min=low, quant_max=high)
    if is_cast_of_bytes(value) and tuple(narrow) == (1.0, 0, 0, 255, torch.uint8):  # bytes are codes as they are
        return graph.call(Q.dequantize_per_tensor.default, operand(value), *grid, before=before)
    codes = graph.call(Q.quantize_per_tensor.default, value, *narrow, before=before)
    return graph.call(Q.dequantize_per_tensor.default, codes, *grid, before=before)


def _clip_channels(graph: Graph, node: Node, value: Node, ends: Tensor, grid: QuantizationParameters) -> Node:
    """Quantize a value with an end per channel, by saturating additions."""
    if bool((ends == grid.quant_max).all()):
        return _round_trip(graph, value, grid, before=node)
    if (layer := Layer.of(value)) is not None and _is_shifted(layer.bias):
        value.update_arg(BIAS, layer.bias.args[0])  # type: ignore[union-attr]
        raised = _round_trip(graph, value, grid, before=node)
    else:
        up = _constant(graph, node, grid.quant_max - ends + grid.quant_min, grid._replace(zero_point=grid.quant_min))
        first = _round_trip(graph, value, grid, before=node)
        raised = _round_trip(graph, graph.call(aten.add.Tensor, first, up, before=node), grid, before=node)
    down = _constant(graph, node, ends, grid._replace(zero_point=grid.quant_max))
    return _round_trip(graph, graph.call(aten.add.Tensor, raised, down, before=node), grid, before=node)


def _constant(graph: Graph, node: Node, codes: Tensor, grid: QuantizationParameters) -> Node:
    constant = graph.add_constant(f"{node.name}_ends", codes.to(grid.dtype), before=node)
    return graph.call(Q.dequantize_per_tensor.default, constant, *grid, before=node)


def _is_shifted(bias: Node | None) -> bool:
    return bias is not None and bias.target is aten.sub.Tensor


def _without_clip(source: Node, grid: QuantizationParameters) -> tuple[Node, tuple[int, int]]:
    """Skip a relu or clamp whose ends the grid's clipping reproduces: the code of each is the grid's last, or beyond, or the one
    before it, which is then the last there is (a clip to [-1, 1] on 256 codes around 128). The first and last code that are left.
    """
    whole = (grid.quant_min, grid.quant_max)
    clip = clip_of(source)
    if clip is None or len(source.users) != 1:
        return source, whole
    scale = torch.tensor(grid.scale)

    def code(end: float) -> float:
        return end if math.isinf(end) else round(float(torch.tensor(end) / scale)) + grid.zero_point

    low, high = (int(min(max(code(end), whole[0]), whole[1])) for end in clip)
    if low > whole[0] + 1 or high < whole[1] - 1:
        return source, whole
    return operand(source), (low, high)

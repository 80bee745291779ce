"""Biases of quantized layers: on the grid of the accumulator, s_bias = s_input * s_weight, where both are uniform.

A channel whose weights are (nearly) zero gets a scale that still represents its bias. A layer whose input or weight is on another
kind of grid has no common step to add its bias in: that stays float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, Layer
from graphopt.ir.ops import aten, family
from graphopt.ir.quantizers import SCALE, UniformQuantizer
from graphopt.ir.scales import end_codes

BIAS_MIN, BIAS_MAX = -(2**31), 2**31 - 1


def quantize_bias(graph: Graph, layer: Layer, shift: Tensor | None) -> None:
    """Put the bias on the grid of the layer's input and weight; with `shift`, put b + shift on it and take shift off again."""
    if layer.bias is None and shift is None:
        return
    node = layer.node
    if layer.bias is None:
        graph.set_bias(node, torch.zeros(layer.out_channels))
    bias = layer.bias
    assert bias is not None
    x, w = operand(layer.input, SCALE), operand(layer.weight, SCALE)
    s = graph.add_expression(f"{bias.target}_scale", aten.mul.Tensor, x, w, before=node)
    per_channel = graph.tensor(w)
    z = graph.add_constant(f"{bias.target}_zero_point", torch.zeros_like(per_channel, dtype=torch.int32), before=node)
    axis = 0 if per_channel.dim() else -1
    if shift is None:
        node.update_arg(BIAS, graph.call(FAKE_QUANTIZE, bias, s, z, BIAS_MIN, BIAS_MAX, axis, before=node))
        return
    constant = graph.add_constant(f"{bias.target}_shift", shift, before=node)
    raised = graph.call(aten.add.Tensor, bias, constant, before=node)
    quantized = graph.call(FAKE_QUANTIZE, raised, s, z, BIAS_MIN, BIAS_MAX, axis, before=node)
    node.update_arg(BIAS, graph.call(aten.sub.Tensor, quantized, constant, before=node))


def channel_shift(graph: Graph, layer: Layer) -> Tensor | None:
    """Where the layer's activation clips each channel at its own end: how far below the grid's end that is, [out].

    See `graphopt.lowering.qdq` for what the shift is for. None where all channels share the grid's end.
    """
    chain = [layer.node]
    while len(chain[-1].users) == 1 and family(reader := next(iter(chain[-1].users))) in ("relu", "channel_clamp"):
        chain.append(reader)
    quantizers = [found for user in chain[-1].users if (found := UniformQuantizer.of(user)) is not None]
    if family(chain[-1]) != "channel_clamp" or len(quantizers) != 1:
        return None
    grid = quantizers[0]
    s, z = graph.tensor(grid.scale), graph.tensor(grid.zero_point)
    if int(z) != grid.low:
        return None
    codes = end_codes(graph, chain[-1], s, z, grid.low, grid.high)
    shift = ((grid.high - codes) * s).flatten()
    return shift if bool((shift != 0).any()) and len(shift) == layer.out_channels else None


def fit_bias(scale: Tensor, reach: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight scales under which the bias still fits 32 bits with room for the sum.

    Weights that all are zero leave their scale to the bias: it is that of the coarsest living channel, or where none lives, such
    that the largest bias has 16 bits.

    Args:
        scale: of the weights, [] or [out].
        reach: the largest |w| that each of them stands for.
        input_scale: of the layer's input, [].
        bias: [out].
    """
    if bool((reach == 0).any()):
        alive = scale[reach > 0]
        if alive.numel():
            scale = torch.where(reach > 0, scale, alive.max())
        elif bias is not None and bool(bias.any()):
            scale = torch.full_like(scale, float(bias.abs().max() / (2.0**16 * input_scale)))
    if bias is None:
        return scale
    need = bias.abs() / (2.0**30 * input_scale)
    return torch.maximum(scale, need if scale.dim() else need.max())

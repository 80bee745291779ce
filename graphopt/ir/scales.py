"""The steps of the quantizers in a simulated graph: which of them may change, and what has to follow.

A bias lies on the grid of the accumulator, scale_input * scale_weight: its scale is that expression.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE, quantize
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, Layer
from graphopt.ir.ops import aten, clip_of, family, share_range
from graphopt.ir.quantizers import SCALE, UniformQuantizer, bias_quantizer, is_uniform, scale_of


def power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale).mantissa == 0.5).all())


def set_scale(graph: Graph, quantizer: Node, value: Tensor) -> None:
    """Let a weight's quantizer have these scales; those of its layers' biases follow. Other quantizers keep what they had."""
    old = operand(quantizer, SCALE)
    if not any(is_uniform(user) and user is not quantizer for user in old.users):
        graph.put_constant(old, value)
        return
    new = graph.set_constant(quantizer, SCALE, value)
    for layer in (layer for user in quantizer.users if (layer := Layer.of(user))):
        if (bias := bias_quantizer(layer)) is not None:
            bias.scale.replace_input_with(old, new)


def free_step(graph: Graph, quantizer: Node, *, powers: bool = False) -> float | None:
    """How large the step of a value's quantizer may become; None where it has to stay as it is.

    A step stays where the range is known (sigmoid, softmax), where a gate or an end per channel was computed from it, and where
    it is a power of two (unless `powers`). The clip of a relu6 is left to the grid as long as the grid ends no later.
    """
    grid = UniformQuantizer.of(quantizer)
    if grid is None or grid.axis != -1 or graph.is_constant(grid.value) or not graph.is_constant(grid.scale):
        return None
    source = grid.value
    if share_range(source) is not None or family(source) in ("mul", "channel_clamp"):
        return None
    if power_of_two(graph.tensor(grid.scale)) and not powers:
        return None
    if any(family(user) == "hard_sigmoid" for user in quantizer.users):
        return None
    if (ends := clip_of(source)) is not None:
        end = ends[1]
        codes = grid.high - int(graph.tensor(grid.zero_point))
        return end / codes if end < float("inf") and codes > 0 else float("inf")
    return float("inf")


def move_bias(graph: Graph, layer: Layer) -> None:
    """Let the bias of an integer layer lie on the grid of the sums of its input and weight as they are now."""
    bias, x, w = bias_quantizer(layer), scale_of(layer.input), scale_of(layer.weight)
    if bias is None or x is None or w is None:
        return
    node, channels = layer.node, graph.tensor(w)
    name = str(bias.value.target if graph.is_constant(bias.value) else bias.value.name)
    scale = graph.add_expression(f"{name}_scale", aten.mul.Tensor, x, w, before=node)
    zero = graph.add_constant(f"{name}_zero_point", torch.zeros_like(channels, dtype=torch.int32), before=node)
    axis = 0 if channels.dim() else -1
    moved = graph.call(FAKE_QUANTIZE, bias.value, scale, zero, bias.low, bias.high, axis, before=node)
    if layer.bias is not bias.node:  # a shift is taken off again behind it
        assert layer.bias is not None
        target, rest = layer.bias.target, layer.bias.args[1:]
        moved = graph.call(target, moved, *rest, before=node)
    node.update_arg(BIAS, moved)


def end_codes(graph: Graph, clip: Node, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The code of each channel's upper end, shaped as the ends are."""
    return quantize(graph.tensor(operand(clip, 2)), scale, zero_point, quant_min, quant_max)

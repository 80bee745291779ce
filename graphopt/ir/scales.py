"""The steps of the quantizers in a simulated graph: which of them may change, and what has to follow.

A bias lies on the grid of the accumulator, scale_input * scale_weight. Where one of the two changed, `tie_biases` follows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.formats import FAKE_QUANTIZE, quantize
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import clip_of, family, share_range


def power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale).mantissa == 0.5).all())


def tie_biases(graph: Graph) -> None:
    """Put every quantized bias on the grid scale_input * scale_weight again."""
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        quantizers = (layer.bias, layer.input, layer.weight)
        if any(q is None or q.target is not FAKE_QUANTIZE for q in quantizers):
            continue
        bias: Node = layer.bias  # type: ignore[assignment]
        scales = [graph.tensor(q.args[1]) for q in (layer.input, layer.weight)]  # type: ignore[arg-type]
        wanted = scales[0] * scales[1]
        if not torch.equal(wanted, graph.tensor(bias.args[1])):  # type: ignore[arg-type]
            graph.set_constant(bias, 1, wanted)


def free_step(graph: Graph, quantizer: Node) -> float | None:
    """How large the step of a value's quantizer may become; None where it has to stay as it is.

    A step stays where the range is known (sigmoid, softmax), where a gate or an end per channel was computed from it, and where
    it is a power of two. The clip of a relu6 is left to the grid as long as the grid ends no later.
    """
    source, scale, zero, _, high, axis, *_ = quantizer.args
    tied = share_range(source) is not None or family(source) in ("mul", "channel_clamp")
    if axis != -1 or not isinstance(source, Node) or tied or graph.is_constant(source):
        return None
    if power_of_two(graph.tensor(scale)) or any(family(user) == "hard_sigmoid" for user in quantizer.users):  # type: ignore[arg-type]
        return None
    if (ends := clip_of(source)) is not None:
        end = ends[1]
        codes = int(high) - int(graph.tensor(zero))  # type: ignore[arg-type]
        return end / codes if end < float("inf") and codes > 0 else float("inf")
    return float("inf")


def end_codes(graph: Graph, clip: Node, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The code of each channel's upper end, shaped as the ends are."""
    return quantize(graph.tensor(clip.args[2]), scale, zero_point, quant_min, quant_max)  # type: ignore[arg-type]

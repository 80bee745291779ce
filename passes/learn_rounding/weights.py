"""The quantized layers of a simulated graph: what is learned about them, and how it is written back.

A learned weight is stored as (code - zero) * scale, a point of its grid, so that rounding it to the nearest code gives that code:
the simulated graph, its deployed form and its artifact agree on the weights without knowing that they were learned.

A bias lies on the grid of the accumulator, scale_input * scale_weight. Where one of the two changed, `tie_biases` follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.graph import Graph
from graphopt.numerics import FAKE_QUANTIZE, SMALLEST_SCALE
from graphopt.ops import Layer, aten, clamp_bounds, family
from graphopt.quadratic import Lattice

ROOM = 2.0**30  # codes of a bias, at most


@dataclass(frozen=True)
class Rounded:
    """A layer whose weight is rounded: `quantizer` is the call that does it, `bias` reads and holds the constant at its root."""

    layer: Layer
    quantizer: Node
    bias: tuple[Node, Node] | None

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Rounded | None:
        layer = Layer.of(node)
        if layer is None or layer.weight.target is not FAKE_QUANTIZE or not graph.is_constant(layer.weight.args[0]):
            return None
        return cls(layer, layer.weight, layer.stored_bias)

    # ---- Weights as [groups, out / groups, d] -----------------------------------------------------------------------

    def grouped(self, weight: Tensor) -> Tensor:
        """From the operator's own layout."""
        return self.layer.canonical(weight).reshape(self.layer.groups, self.layer.out_channels // self.layer.groups, -1)

    def native(self, grouped: Tensor, like: Tensor) -> Tensor:
        return self.layer.native(grouped.reshape(self.layer.canonical(like).shape)).contiguous()

    def weight(self, graph: Graph) -> Tensor:
        """The stored constant in the operator's own layout."""
        return graph.tensor(self.quantizer.args[0])  # type: ignore[arg-type]

    def lattice(self, graph: Graph) -> Lattice:
        _, scale, zero, low, high, _ = self.quantizer.args
        full = (self.layer.groups, self.layer.out_channels // self.layer.groups, 1)
        s, z = graph.tensor(scale).double(), graph.tensor(zero).double()  # type: ignore[arg-type]
        if s.dim() and self.layer.kind == "conv_transpose":  # one scale per channel inside a group
            s, z = (p.repeat(self.layer.groups) for p in (s, z))
        s, z = (p.reshape(full) if p.dim() else p.expand(full) for p in (s, z))
        return Lattice(s, z, low, high)  # type: ignore[arg-type]

    def scales_fixed(self, graph: Graph) -> bool:
        """Whether the scales have to stay: one for all channels, powers of two, or a bias that is shifted in their units."""
        scale = graph.tensor(self.quantizer.args[1])  # type: ignore[arg-type]
        shifted = self.layer.bias is not None and self.layer.bias.target is aten.sub.Tensor
        return not scale.dim() or self.layer.kind == "conv_transpose" or power_of_two(scale) or shifted

    def least_scale(self, graph: Graph) -> Tensor:
        """The smallest scales [out] with which the bias fits into 32 bits."""
        if self.bias is None:
            return torch.full((self.layer.out_channels,), SMALLEST_SCALE)
        step = graph.tensor(self.layer.input.args[1])  # type: ignore[arg-type]
        return (graph.tensor(self.bias[1]).abs() / (ROOM * step)).clamp(min=SMALLEST_SCALE)

    # ---- Writing back -----------------------------------------------------------------------------------------------

    def store(self, graph: Graph, codes: Tensor, lattice: Lattice, bias: Tensor | None) -> None:
        """Let the layer have these codes [g, out, d], scales, and bias [out]."""
        old = self.weight(graph)
        if not self.scales_fixed(graph):
            scale = torch.maximum(lattice.scale.flatten().float(), self.least_scale(graph))
            graph.set_constant(self.quantizer, 1, scale)
            lattice = Lattice(scale.reshape(lattice.scale.shape), lattice.zero, lattice.low, lattice.high)
        weight = ((codes - lattice.zero).float() * lattice.scale.float()).to(old.dtype)
        graph.set_constant(self.quantizer, 0, self.native(weight, old))
        if bias is not None and self.bias is not None:
            reader, constant = self.bias
            graph.set_constant(reader, reader.args.index(constant), bias.to(graph.tensor(constant).dtype))


def power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale).mantissa == 0.5).all())


def rounded_layers(graph: Graph) -> list[Rounded]:
    """All of them, in execution order."""
    return [found for node in graph.calls() if (found := Rounded.of(graph, node)) is not None]


def tie_biases(graph: Graph) -> None:
    """Put every quantized bias on the grid scale_input * scale_weight again."""
    for rounded in rounded_layers(graph):
        bias = rounded.layer.bias
        if bias is None or bias.target is not FAKE_QUANTIZE or rounded.layer.input.target is not FAKE_QUANTIZE:
            continue
        scales = [graph.tensor(q.args[1]) for q in (rounded.layer.input, rounded.quantizer)]  # type: ignore[arg-type]
        wanted = scales[0] * scales[1]
        if not torch.equal(wanted, graph.tensor(bias.args[1])):  # type: ignore[arg-type]
            graph.set_constant(bias, 1, wanted)


def float_twin(graph: Graph) -> Graph:
    """The network before it was quantized: a copy that goes past every quantizer, weights and values alike."""
    twin = graph.clone().eval()
    for node in twin.calls(FAKE_QUANTIZE):
        twin.replace(node, node.args[0])  # type: ignore[arg-type]
    twin.refresh()
    return twin


def free_step(graph: Graph, quantizer: Node) -> float | None:
    """How large the step of a value's quantizer may become; None where it has to stay as it is.

    A step stays where the range is known (sigmoid, softmax), where a gate or an end per channel was computed from it, and where
    it is a power of two. The clip of a relu6 is left to the grid as long as the grid ends no later.
    """
    source, scale, zero, _, high, axis = quantizer.args
    if axis != -1 or not isinstance(source, Node) or family(source) in _TIED or graph.is_constant(source):
        return None
    if power_of_two(graph.tensor(scale)):  # type: ignore[arg-type]
        return None
    if family(source) == "clamp":
        end = clamp_bounds(source)[1]
        codes = int(high) - int(graph.tensor(zero))  # type: ignore[arg-type]
        return end / codes if end < float("inf") and codes > 0 else float("inf")
    return float("inf")


_TIED = frozenset({"sigmoid", "hard_sigmoid", "softmax", "mul", "channel_clamp"})

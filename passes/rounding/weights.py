"""The quantized layers of a simulated graph: what is learned about them, and how it is written back.

A learned weight is stored as (code - zero) * scale, a point of its grid, so that rounding it to the nearest code gives that code:
the simulated graph, its deployed form and its artifact agree on the weights without knowing that they were learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.reference import set_compensated
from graphopt.fitting.rounding import Lattice
from graphopt.formats import FAKE_QUANTIZE, SMALLEST_CHANNEL_SCALE, in_blocks
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import UniformQuantizer, is_quantizer, is_uniform, quantizer_of
from graphopt.ir.scales import power_of_two, set_scale

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
        return graph.tensor(operand(self.quantizer))

    def lattice(self, graph: Graph) -> Lattice:
        grid = UniformQuantizer.of(self.quantizer)
        assert grid is not None
        full = (self.layer.groups, self.layer.out_channels // self.layer.groups, 1)
        s, z = graph.tensor(grid.scale).double(), graph.tensor(grid.zero_point).double()
        if grid.block:
            return Lattice(s[None], z.expand_as(s)[None], grid.low, grid.high, *grid.block)
        if s.dim() and self.layer.kind == "conv_transpose":  # one scale per channel inside a group
            s, z = (p.repeat(self.layer.groups) for p in (s, z))
        s, z = (p.reshape(full) if p.dim() else p.expand(full) for p in (s, z))
        return Lattice(s, z, grid.low, grid.high)

    def scales_fixed(self, graph: Graph) -> bool:
        """Whether the scales have to stay: one for all channels, powers of two, or a bias that is shifted in their units."""
        if in_blocks(self.quantizer):
            return False
        scale = graph.tensor(operand(self.quantizer, 1))
        shifted = self.layer.bias is not None and self.layer.bias.target is aten.sub.Tensor
        return not scale.dim() or self.layer.kind == "conv_transpose" or power_of_two(scale) or shifted

    def least_scale(self, graph: Graph) -> Tensor:
        """The smallest scales [out] with which the bias fits into 32 bits."""
        if self.bias is None or not is_uniform(self.layer.input):  # a float bias, or none
            return torch.full((self.layer.out_channels,), SMALLEST_CHANNEL_SCALE)
        step = graph.tensor(operand(self.layer.input, 1))
        return (graph.tensor(self.bias[1]).abs() / (ROOM * step)).clamp(min=SMALLEST_CHANNEL_SCALE)

    # ---- What is found ----------------------------------------------------------------------------------------------

    def settled(self, graph: Graph, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The weight, in the operator's own layout, and the scales that are stored for codes [g, out, d] and scales found for
        them, both in the lattice's shape."""
        lattice, old = self.lattice(graph), self.weight(graph)
        if in_blocks(self.quantizer):
            lattice = replace(
                lattice, scale=scale
            )  # the bias is float: there is no accumulator whose grid has to hold it
        elif not self.scales_fixed(graph):
            held = torch.maximum(scale.flatten().float(), self.least_scale(graph))
            lattice = replace(lattice, scale=held.reshape(lattice.scale.shape))
        single = replace(lattice, scale=lattice.scale.float(), zero=lattice.zero.float())
        return self.native(single.weight(codes.float()).to(old.dtype), old), single.scale

    def store(self, graph: Graph, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Let the layer have these codes [g, out, d], scales, and bias [out]."""
        weight, scale = self.settled(graph, codes, scale)
        if not self.scales_fixed(graph):
            set_scale(graph, self.quantizer, scale[0] if in_blocks(self.quantizer) else scale.flatten())
        set_compensated(graph, self.quantizer, 0, weight)
        if bias is not None and self.bias is not None:
            reader, constant = self.bias
            set_compensated(graph, reader, reader.args.index(constant), bias.to(graph.tensor(constant).dtype))


def rounded_layers(graph: Graph) -> list[Rounded]:
    """All of them, in execution order."""
    return [found for node in graph.calls() if (found := Rounded.of(graph, node)) is not None]


def other_layers(graph: Graph) -> dict[Node, str]:
    """The layers whose weights are rounded to another format than a uniform one, and its name."""
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    return {
        layer.node: str(quantizer_of(graph, layer.weight).format)
        for layer in layers
        if is_quantizer(layer.weight) and not is_uniform(layer.weight)
    }

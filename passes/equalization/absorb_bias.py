"""Move high biases into the next layer, so that the value between them needs a smaller range.

Where channel i of a layer lies above c_i > 0 practically always, relu passes it unchanged and c_i can travel on:

    relu(W1 x + b1) = relu(W1 x + b1 - c) + c              wherever W1 x + b1 >= c
    b1' = b1 - c            b2' = b2 + sum over kernel of W2 c
    c = max(0, mean - 3 deviations)    of the channel, known from the batch norm folded into it

Only readers that do not pad take part: a border of zeros would not carry c. Nothing happens where every channel's c is 0.

Needs:  batch norm folded; relu (or a clip that the lowered values stay under) between the layers.
Keeps:  outputs wherever the channel exceeds c: all but about 0.1 % of the values of a normal distribution.
Paper:  Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.distributions import known_moments
from graphopt.ir.constants import constant_weights
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family
from graphopt.ir.passes import Change


@dataclass(frozen=True)
class AbsorbHighBias:
    """`deviations`: how far below its mean a channel may fall before the absorbed part is cut off."""

    exact: ClassVar[bool] = False

    deviations: float = 3.0

    def __call__(self, graph: Graph) -> list[Change]:
        changes = constant_weights(graph)
        layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
        return changes + [change for layer in layers if (change := self.absorb(graph, layer))]

    def absorb(self, graph: Graph, layer: Layer) -> Change | None:
        moments = known_moments(graph, layer.node)
        activation = next(iter(layer.node.users), None)
        if moments is None or layer.bias is None or len(layer.node.users) != 1 or family(activation) != "relu":
            return None
        assert activation is not None
        readers = [Layer.of(user) for user in activation.users]
        if not readers or not all(reader and takes(graph, activation, reader) for reader in readers):
            return None
        mean, deviation = moments
        constant = (mean - self.deviations * deviation).clamp(min=0)
        if not bool((constant > 0).any()):
            return None
        bias = graph.tensor(layer.bias)
        graph.set_bias(layer.node, (bias.double() - constant).to(bias.dtype))
        graph.set_fact(layer.node, MOMENTS, Moments((mean - constant).float(), deviation.float()))
        for reader in readers:
            assert reader is not None
            push(graph, reader, constant)
        return Change(
            graph.site(layer.node), f"{int((constant > 0).sum())} channels lowered by up to {float(constant.max()):.3g}"
        )


def takes(graph: Graph, value: Node, reader: Layer) -> bool:
    """Can this reader take a constant added to all of its input?"""
    direct = reader.node.args[0] is value and reader.kind != "conv_transpose" and reader.channel_dim == 1
    return direct and graph.is_constant(reader.weight) and not any(reader.padding)


def push(graph: Graph, reader: Layer, constant: Tensor) -> None:
    """Add what the layer makes of a constant input [in] to its bias."""
    weight = reader.canonical(graph.tensor(reader.weight)).double()
    bias = graph.tensor(reader.bias).double() if reader.bias is not None else 0.0
    dtype = graph.tensor(reader.weight).dtype
    graph.set_bias(
        reader.node, (bias + reader.respond(weight, constant)).to(dtype), keeps=[MOMENTS]
    )  # it gives what it gave

"""Fold channels that cannot change: their value moves into the bias of the layers behind.

Trained networks have dead channels: weights of 1e-20 behind which only the bias speaks. Harmless in float, they ruin range
equalization, which divides by their weights. Channel i is constant where interval bounds show that its weights move it by
less than a millionth of what the layer's other channels move (unbounded inputs count alike for all channels):

    x_i = act(b_i) = c          for any input
    W'[i, :] = 0                the producing weights

and in a reader that does not pad, or where c = 0,

    b2' = b2 + sum over kernel of W2[:, i] * c          W2'[:, i] = 0

Where every reader took the constant, the bias b_i is zero, too. A reader that pads with zeros sees c inside and 0 at the border;
it keeps its weights unless c is 0.

Keeps:  outputs, up to float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.intervals import Interval, extend, through_layer
from graphopt.ir.constants import constant_weights
from graphopt.ir.facts import MOMENTS, Moments
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import family, function_of_one, info
from graphopt.ir.passes import Change

SHARE = 2.0**-20  # of the widest sibling's movement: below float32's resolution of the sum behind it


@dataclass(frozen=True)
class FoldConstantChannels:
    exact: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> list[Change]:
        known: dict[Node, Interval] = {}
        changes = constant_weights(graph)
        for node in graph.calls():  # in order, so that a constant may make channels behind it constant
            layer = Layer.of(node)
            if layer is not None and (change := self.fold(graph, layer, known)):
                changes.append(change)
            extend(graph, node, known)
        return changes

    def fold(self, graph: Graph, layer: Layer, known: dict[Node, Interval]) -> Change | None:
        """Fold the constant channels of one layer; None where there is nothing (left) to fold."""
        if layer.channel_dim != 1 or not graph.is_constant(layer.weight) or layer.kind == "conv_transpose":
            return None
        dead = constant_channels(graph, layer, known.get(layer.input))
        if not bool(dead.any()):
            return None
        weight, moments = graph.tensor(layer.weight), graph.fact(layer.node, MOMENTS)
        bias = graph.tensor(layer.bias).double() if layer.bias is not None else torch.zeros(layer.out_channels).double()
        folded = bool((weight[dead] != 0).any())
        if folded:
            weight = weight.clone()
            weight[dead] = 0
            graph.set_constant(layer.node, WEIGHT, weight)
        readers = readers_of(layer.node)
        taken = dead.clone()
        for reader, path in readers or []:
            constant = through(bias, path)
            can = dead & (constant == 0) if any(reader.padding) else dead
            folded |= absorb(graph, reader, constant, can)
            taken &= can
        if readers and bool((bias[taken] != 0).any()):
            graph.set_bias(layer.node, torch.where(taken, 0.0, bias).to(weight.dtype))
            folded = True
        if moments is not None:  # what never changes is what is left of the bias
            still = torch.where(taken, 0.0, bias) if readers else bias
            mean, deviation = (m.double() for m in moments)
            left = Moments(torch.where(dead, still, mean).float(), deviation.masked_fill(dead, 0).float())
            graph.set_fact(layer.node, MOMENTS, left)
        count = int(dead.sum())
        return (
            Change(graph.site(layer.node), f"{count} constant channel{'s' * (count != 1)} folded") if folded else None
        )


def constant_channels(graph: Graph, layer: Layer, source: Interval | None) -> Tensor:
    """Which output channels the weights cannot move, the input lying in `source`: bool [out]."""
    interval = through_layer(graph, layer, source)
    assert interval is not None
    width = interval.high - interval.low
    if bool(torch.isinf(width).any()):
        width = layer.canonical(graph.tensor(layer.weight)).double().abs().flatten(1).sum(1)
    return width <= SHARE * width.max()


def readers_of(node: Node) -> list[tuple[Layer, list[Node]]] | None:
    """Every layer that reads the value, with the calls between; None where anything else reads it."""
    found: list[tuple[Layer, list[Node]]] = []
    for user in node.users:
        if (
            (layer := Layer.of(user)) is not None
            and user.args[0] is node
            and layer.channel_dim == 1
            and layer.kind != "conv_transpose"
        ):
            found.append((layer, []))
        elif keeps_constant(user):
            behind = readers_of(user)
            if behind is None:
                return None
            found += [(layer, [user, *path]) for layer, path in behind]
        else:
            return None
    return found


def keeps_constant(node: Node) -> bool:
    """Whether a channel that is constant in front of a call is so behind it, in the ways that equalization follows channels."""
    if function_of_one(node) is not None:
        return info(node).homogeneous or info(node).fusable
    return family(node) in (
        "max_pool",
        "identity",
        "global_average_pool",
    )  # another pool may average zeros of its border


def through(bias: Tensor, path: list[Node]) -> Tensor:
    """What a constant becomes on its way to a reader: [channels], float64."""
    value = bias
    for node in path:
        if (function := function_of_one(node)) is not None:
            value = function(value)
    return value


def absorb(graph: Graph, reader: Layer, constant: Tensor, which: Tensor) -> bool:
    """Move these channels' constants into the reader's bias and clear their weights; False where that is done already."""
    weight = reader.canonical(graph.tensor(reader.weight))
    chosen = reader.over_inputs(which)
    if not bool((chosen & (weight != 0)).any()):
        return False
    added = reader.respond(weight.double(), torch.where(which, constant, 0.0))
    graph.set_constant(reader.node, WEIGHT, torch.where(chosen, 0.0, weight), keeps=[MOMENTS])
    if bool((added != 0).any()):
        bias = graph.tensor(reader.bias).double() if reader.bias is not None else torch.zeros_like(added)
        graph.set_bias(reader.node, (bias + added).to(weight.dtype), keeps=[MOMENTS])
    return True

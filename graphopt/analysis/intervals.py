"""Interval bounds of every value, channel by channel, from weights alone.

Interval arithmetic through the graph: a layer maps center c and radius r of its inputs to W c + b and |W| r; activations clip;
what is not followed has no bounds. Inputs of the model are unknown, so bounds exist only behind something that clips
(ReLU6, sigmoid, ...) or behind weights that are zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family, function_of_one, info, operand, shape


class Interval(NamedTuple):
    """Ends per channel along dimension 1, float64 [channels]."""

    low: Tensor
    high: Tensor


def extend(graph: Graph, node: Node, known: dict[Node, Interval]) -> None:
    """Add the interval of one value to those of the values before it, where it can be followed."""
    interval = _of(graph, node, known)
    if interval is not None:
        known[node] = interval


def _of(graph: Graph, node: Node, found: dict[Node, Interval]) -> Interval | None:
    kind, told = family(node), info(node)
    source = found.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if (layer := Layer.of(node)) is not None:
        return through_layer(graph, layer, source)
    if told.range is not None and len(shape(node)) > 1 and isinstance(shape(node)[1], int):
        low, high = (torch.full((shape(node)[1],), end, dtype=torch.float64) for end in told.range)
        return Interval(low, high)
    if source is None:
        return None
    if told.monotone and (function := function_of_one(node)) is not None:
        return Interval(*map(function, source))
    if kind == "pad":
        return (
            Interval(source.low.clamp(max=0), source.high.clamp(min=0)) if len(source.low) == shape(node)[1] else None
        )
    if kind == "reshape":
        (batch, *_), (kept, *sizes) = shape(operand(node)), shape(node)
        return source if kept == batch and sizes[:1] == [len(source.low)] else None
    if kind == "add" and isinstance(node.args[1], Node) and (other := found.get(node.args[1])) is not None:
        same = shape(operand(node))[1:] == shape(operand(node, 1))[1:]
        return Interval(source.low + other.low, source.high + other.high) if same else None
    return source if told.within_channels and (told.selects or told.averages) else None


def through_layer(graph: Graph, layer: Layer, source: Interval | None) -> Interval | None:
    """W x + b over the interval; an unknown input is unbounded, which zero weights still map to the bias."""
    if layer.channel_dim != 1 or not graph.is_constant(layer.weight):
        return None
    if source is None or len(source.low) != layer.in_channels:
        endless = torch.full((layer.in_channels,), torch.inf, dtype=torch.float64)
        source = Interval(-endless, endless)
    elif any(layer.padding) or layer.kind == "conv_transpose":  # the border reads zeros
        source = Interval(source.low.clamp(max=0), source.high.clamp(min=0))
    weight = layer.canonical(graph.tensor(layer.weight)).double()
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    low, high = (layer.over_inputs(end) for end in source)
    bias = graph.tensor(layer.bias).double() if layer.bias is not None else 0.0
    return Interval(
        _product(positive, low) + _product(negative, high) + bias,
        _product(positive, high) + _product(negative, low) + bias,
    )


def _product(weight: Tensor, end: Tensor) -> Tensor:
    """Sum over inputs and kernel of weight * end, with 0 * infinity = 0: [out]."""
    return torch.where(weight == 0, 0.0, weight * end).flatten(1).sum(1)

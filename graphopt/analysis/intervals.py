"""Interval bounds of every value, channel by channel, from weights alone.

Interval arithmetic through the graph: a layer maps center c and radius r of its inputs to W c + b and |W| r; activations clip;
what is not followed has no bounds. Inputs of the model are unknown, so bounds exist only behind something that clips
(ReLU6, sigmoid, ...) or behind weights that are zero.

An operator's rule takes the graph, the call and the intervals known so far, and returns the call's, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.binary import Binary
from graphopt.ir.calls import operand, same_sizes, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import function_of_one, info
from graphopt.ir.rules import Rules


class Interval(NamedTuple):
    """Ends per channel along dimension 1, float64 [channels]."""

    low: Tensor
    high: Tensor


Known = Mapping[Node, Interval]
RULES: Rules[Callable[[Graph, Node, Known], Interval | None]] = Rules("interval")


def extend(graph: Graph, node: Node, known: dict[Node, Interval]) -> None:
    """Add the interval of one value to those of the values before it, where it can be followed."""
    interval = (RULES.find(node) or by_traits)(graph, node, known)
    if interval is not None:
        known[node] = interval


def by_traits(graph: Graph, node: Node, known: Known) -> Interval | None:
    """What the operator table alone says of a call."""
    traits, source = info(node), _source(node, known)
    if (layer := Layer.of(node)) is not None:
        return through_layer(graph, layer, source)
    if traits.range is not None and len(shape(node)) > 1 and isinstance(shape(node)[1], int):
        low, high = (torch.full((shape(node)[1],), end, dtype=torch.float64) for end in traits.range)
        return Interval(low, high)
    if source is None:
        return None
    if traits.monotone and (function := function_of_one(node)) is not None:
        return Interval(*map(function, source))
    return source if traits.within_channels and (traits.selects or traits.averages) else None


@RULES.of("pad")
def pad(graph: Graph, node: Node, known: Known) -> Interval | None:
    """Zeros at the border of each channel; channels that are added have no interval."""
    source = _source(node, known)
    if source is None or len(source.low) != shape(node)[1]:
        return None
    return Interval(source.low.clamp(max=0), source.high.clamp(min=0))


@RULES.of("reshape")
def reshape(graph: Graph, node: Node, known: Known) -> Interval | None:
    """Samples and channels stay where they are."""
    source = _source(node, known)
    if source is None:
        return None
    (batch, *_), (kept, *sizes) = shape(operand(node)), shape(node)
    return source if kept == batch and sizes[:1] == [len(source.low)] else None


@RULES.of("add")
def add(graph: Graph, node: Node, known: Known) -> Interval | None:
    """The ends are added, where both operands have the same shape."""
    total = Binary.of(node)
    if total is None or not all(a in known for a in total.operands):
        return None
    one, other = total.tensors
    if not same_sizes(shape(one)[1:], shape(other)[1:]):
        return None
    return Interval(known[one].low + known[other].low, known[one].high + known[other].high)


def _source(node: Node, known: Known) -> Interval | None:
    first = node.args[0] if node.args else None
    return known.get(first) if isinstance(first, Node) else None


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

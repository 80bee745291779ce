"""Convolutions of weighted copies of their input, as `CondConv` makes them.

conv(flatten(unsqueeze(x) * r), W)                  x: [N, C, ...]   r: [N, E, 1, ...]   W: [out, E C, ...]
conv(flatten(unflatten(x, groups) * r), W)          of grouped ones  r: [N, 1, E, 1, ...]   W: [out, E C / groups, ...]
"""

from __future__ import annotations

from typing import NamedTuple

from torch.fx.node import Node

from graphopt.ir.calls import argument, operand, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten


class WeightedCopies(NamedTuple):
    """A convolution, what it is computed of, the weights of copies, [N, E, 1, ...], with groups [N, 1, E, 1, ...], and E."""

    layer: Layer
    x: Node
    routed: Node
    experts: int


def weighted(graph: Graph, node: Node) -> WeightedCopies | None:
    """What a call is, where it is such a convolution; None for others."""
    layer = Layer.of(node)
    if layer is None or layer.kind != "conv" or not graph.is_constant(layer.weight):
        return None
    flat = layer.input
    if flat.target is not aten.flatten.using_ints or operand(flat).target is not aten.mul.Tensor:
        return None
    apart, routed = operand(flat).args[:2]
    if not isinstance(apart, Node) or not isinstance(routed, Node) or not apart.all_input_nodes:
        return None
    x, place = apart.all_input_nodes[0], 1 if layer.groups == 1 else 2
    if apart.target not in (aten.unsqueeze.default, aten.unflatten.int, aten.view.default, aten.reshape.default):
        return None
    groups = [] if layer.groups == 1 else [layer.groups]
    size = shape(x)[1] // layer.groups if len(shape(x)) == layer.dims + 2 else 0
    sides = shape(apart)[1:], shape(routed)[1:]
    experts = sides[1][place - 1] if len(sides[1]) >= place else 1
    wanted = [*groups, 1, size, *shape(x)[2:]], [*[1] * len(groups), experts, 1, *[1] * layer.dims]
    joined = argument(flat, "start_dim") == 1 and argument(flat, "end_dim") == place + 1
    if [list(map(str, side)) for side in sides] != [list(map(str, side)) for side in wanted] or not joined:
        return None
    return WeightedCopies(layer, x, routed, int(experts))

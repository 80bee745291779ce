"""Pairs of linear layers with an activation in between, which nothing else reads: the MLPs of transformers."""

from __future__ import annotations

from typing import NamedTuple

from torch.fx.node import Node

from graphopt.ir.calls import is_float, operand, shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import info


class Mlp(NamedTuple):
    """`down(activation(up(x)))`; neurons: how many are in between."""

    name: str
    up: Node
    activation: Node
    down: Node
    neurons: int


def mlps(graph: Graph) -> list[Mlp]:
    """All of a graph, in execution order."""
    return [found for node in graph.calls() if (found := _mlp(graph, node)) is not None]


def _mlp(graph: Graph, node: Node) -> Mlp | None:
    down = Layer.of(node)
    if down is None or not _plain(graph, down) or not _alike(activation := down.input):
        return None
    up = Layer.of(source) if isinstance(source := operand(activation), Node) else None
    if up is None or not _plain(graph, up) or len(up.node.users) != 1 or len(activation.users) != 1:
        return None
    return Mlp(graph.site(up.node), up.node, activation, node, int(shape(up.node)[-1]))


def _alike(activation: Node) -> bool:
    """Whether it is the same function for all neurons, which change places: not one with a slope for each."""
    others = (each for each in activation.all_input_nodes if each is not activation.args[0])
    return info(activation).pointwise and all(value(each).numel() == 1 for each in others)


def _plain(graph: Graph, layer: Layer) -> bool:
    """A linear layer on floats with weights that are there."""
    constant = graph.is_constant(layer.weight) and (layer.bias is None or graph.is_constant(layer.bias))
    return layer.kind == "linear" and constant and is_float(layer.node)

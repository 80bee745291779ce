"""Calls that only constants lead to, computed once.

What `torch.nn.utils.parametrizations` leaves of a weight (weight_norm, spectral_norm) reads the same: calls on constants. Passes
that change weights, cut them or take them apart need those to be constants, and begin with `constant_weights`.
"""

from __future__ import annotations

import math
import operator

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import shape, value
from graphopt.ir.equal_calls import equal_calls
from graphopt.ir.facts import FLOAT_REFERENCE, STORED_AS
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.masks import bake, mask_of
from graphopt.ir.ops import is_random
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import is_quantizer, is_scale_expression
from graphopt.ir.reading import leading


def fold_constant(graph: Graph, node: Node) -> str:
    """Put a constant in the place of a call that reads constants alone, unless it would be larger than what it reads; trainable
    where one of those is. Returns its name, or nothing where the call stays."""
    inputs = node.all_input_nodes
    if not inputs or not all(graph.is_constant(n) for n in inputs) or is_quantizer(node) or graph.fact(node, STORED_AS):
        return ""
    if is_scale_expression(node) or any(graph.fact(n, FLOAT_REFERENCE) is not None for n in inputs):
        return ""  # has to follow the scales it is computed from; and what a constant was before would be lost
    if is_random(node) or not isinstance(value(node), Tensor):
        return ""
    sizes = shape(node)
    if not all(isinstance(size, int) for size in sizes):
        return ""
    if math.prod(sizes) > max(sum(graph.tensor(n).numel() for n in inputs), 1024):
        return ""
    folded = graph.add_constant(_name(graph, node), graph.tensor(node).clone(), before=node, like=inputs)
    graph.replace(node, folded)
    return str(folded.target)


def _name(graph: Graph, node: Node) -> str:
    """A layer's weight and bias are called after the layer."""
    for reader in node.users:
        layer = Layer.of(reader)
        if layer is not None and node in (layer.weight, layer.bias):
            return f"{graph.site(reader)}.{'weight' if layer.weight is node else 'bias'}"
    return f"{node.all_input_nodes[0].target}_{node.name}"


def constant_weights(graph: Graph) -> list[Change]:
    """Let the weights and biases of layers be constants where only constants lead to them, masks baked in, in place."""
    return bake(graph) + fold_weights(graph)


def fold_weights(graph: Graph) -> list[Change]:
    """Compute the weights and biases of layers that are calls on constants, in place; masks stay. Outputs stay as they are.

    The weights are new parameters: make an optimizer afterwards.
    """
    wanted, changes = _before_layers(graph), []
    if not wanted:
        return []
    for node, twin in equal_calls(graph, operator.is_).items():
        if node in wanted:
            wanted.discard(node)
            graph.replace(node, twin)  # a layer that runs twice has one weight
    for node in sorted(wanted, reverse=True):  # a weight as a whole, before what it is computed by
        site = graph.site(node)
        if node.users and any(Layer.of(reader) for reader in node.users) and (name := _fold_whole(graph, node)):
            changes.append(Change(site, f"{name} computed once"))
    graph.sweep()
    for node in sorted(node for node in wanted if node in set(graph.nodes)):
        site = graph.site(node)
        if name := fold_constant(graph, node):
            changes.append(Change(site, f"{name} computed once"))
    graph.refresh()
    return changes


def _fold_whole(graph: Graph, node: Node) -> str:
    """Put a constant in the place of a call that nothing but constants and numbers lead to, however large. Returns its name."""
    lead = sorted(leading(node))
    constants = [n for n in lead if graph.is_constant(n)]
    calls = [n for n in lead if n not in constants]
    free = any(is_random(n) or is_quantizer(n) or is_scale_expression(n) or mask_of(graph, n) for n in calls)
    if not constants or free or any(n.op != "call_function" for n in calls):
        return ""
    if any(graph.fact(n, FLOAT_REFERENCE) is not None for n in constants):
        return ""
    folded = graph.add_constant(_name(graph, node), graph.tensor(node).clone(), before=node, like=constants)
    graph.replace(node, folded)
    return str(folded.target)


def _before_layers(graph: Graph) -> set[Node]:
    """The calls that weights and biases are computed by."""
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    todo = [node for layer in layers for node in (layer.weight, layer.bias) if node is not None]
    found = set[Node]()
    while todo:
        node = todo.pop()
        stays = is_quantizer(node) or mask_of(graph, node) or graph.fact(node, STORED_AS)
        if node.op == "call_function" and node not in found and not stays:
            found.add(node)
            todo += node.all_input_nodes
    return found

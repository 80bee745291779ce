"""Products with a constant matrix written as linear layers, which is what they are.

    addmm(bias, x, W), mm(x, W), matmul(x, W)    ->    linear(x, W^T, bias)        W: [in, out], a constant

The transposed weight takes over the name of the original where nothing else reads that one.
"""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT
from graphopt.ir.ops import argument, aten, is_float, shape, value

PRODUCTS = (aten.addmm.default, aten.mm.default, aten.matmul.default)


def weight_of(graph: Graph, node: Node) -> Node | None:
    """The constant matrix [in, out] that a product multiplies with; None for any other call."""
    if node.target not in PRODUCTS:
        return None
    weight: Any = node.args[-1]
    if not graph.is_constant(weight) or len(shape(weight)) != 2 or not is_float(weight):
        return None
    if node.target is aten.addmm.default:
        bias: Any = node.args[0]
        plain = argument(node, "beta") == 1 == argument(node, "alpha")
        return weight if plain and graph.is_constant(bias) and len(shape(bias)) == 1 else None
    return weight if node.args[0] is not weight else None


def write_linear(graph: Graph, node: Node) -> Node:
    """Put the linear layer in the place of a product for which `weight_of` gave a weight."""
    weight = weight_of(graph, node)
    assert weight is not None
    bias, x = node.args[:2] if node.target is aten.addmm.default else (None, node.args[0])
    layer = graph.call(aten.linear.default, x, weight, *([bias] if bias is not None else []), before=node)
    layer.meta["val"] = value(node)
    graph.replace(node, layer)
    graph.set_constant(layer, WEIGHT, graph.tensor(weight).T.contiguous())
    return layer

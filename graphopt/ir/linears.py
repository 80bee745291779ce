"""Products with a constant matrix written as linear layers, which is what they are.

    addmm(bias, x, W), mm(x, W), matmul(x, W)    ->    linear(x, W^T, bias)        W: [in, out], a constant
    einsum("...i,io->...o", [x, W])              ->    linear(x, W^T)              any letters; W as it is for "oi"
    linear(x, W) + bias                          ->    linear(x, W, bias)          bias: [out], a constant

The transposed weight takes over the name of the original where nothing else reads that one.
"""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from graphopt.ir.calls import argument, is_float, same_sizes, shape, value
from graphopt.ir.checkpoint import Entry
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT
from graphopt.ir.ops import aten

PRODUCTS = (aten.addmm.default, aten.mm.default, aten.matmul.default, aten.einsum.default)


def weight_of(graph: Graph, node: Node) -> Node | None:
    """The constant matrix that a product multiplies with; None for any other call."""
    if node.target not in PRODUCTS:
        return None
    if node.target is aten.einsum.default and _contracted(node) is None:
        return None
    weight: Any = _operands(node)[-1]
    if not graph.is_constant(weight) or len(shape(weight)) != 2 or not is_float(weight):
        return None
    if node.target is aten.addmm.default:
        bias: Any = node.args[0]
        plain = argument(node, "beta") == 1 == argument(node, "alpha")
        return weight if plain and graph.is_constant(bias) and len(shape(bias)) == 1 else None
    return weight if _operands(node)[0] is not weight else None


def _operands(node: Node) -> list[Any]:
    operands: Any = node.args[1] if node.target is aten.einsum.default else node.args
    return list(operands)


def _contracted(node: Node) -> int | None:
    """The dimension of the matrix, 0 or 1, that an einsum multiplies the last dimension of its input with; None for others."""
    equation: Any = node.args[0]
    parts = equation.replace(" ", "").replace("...", ".").split("->")
    terms = parts[0].split(",")
    if len(parts) != 2 or len(terms) != 2 or len(terms[1]) != 2 or not terms[0] or len(set(terms[0])) != len(terms[0]):
        return None
    contracted = terms[1].find(terms[0][-1])
    if contracted < 0:
        return None
    free = terms[1][1 - contracted]
    return contracted if free not in terms[0] and parts[1] == terms[0][:-1] + free else None


def write_linear(graph: Graph, node: Node, transpose: Node | None = None) -> tuple[Node, bool]:
    """Put the linear layer in the place of a product for which `weight_of` gave a weight.

    Args:
        transpose: the constant W^T, where an earlier product has made it.

    Returns:
        The layer, and whether its weight is the transpose of the matrix.
    """
    weight = weight_of(graph, node)
    assert weight is not None
    bias, x = node.args[:2] if node.target is aten.addmm.default else (None, _operands(node)[0])
    transposed = node.target is not aten.einsum.default or _contracted(node) == 0
    reads = transpose if transposed and transpose is not None else weight
    layer = graph.call(aten.linear.default, x, reads, *([bias] if bias is not None else []), before=node)
    layer.meta["val"] = value(node)
    graph.replace(node, layer)
    if reads is weight and transposed:
        graph.set_constant(layer, WEIGHT, graph.tensor(weight).T.contiguous())
    return layer, transposed


def take_bias(graph: Graph, layer: Node) -> Node:
    """Let a linear layer without bias add the constant vector that is added behind it, where there is one; what computes the
    sum afterwards."""
    (reader,) = layer.users if len(layer.users) == 1 else (None,)
    if reader is None or reader.target is not aten.add.Tensor or len(layer.args) > 2 or argument(reader, "alpha") != 1:
        return layer
    bias: Any = next((a for a in reader.args if a is not layer), None)
    if (
        not graph.is_constant(bias)
        or not same_sizes(shape(bias), shape(layer)[-1:])
        or value(bias).dtype != value(layer).dtype
    ):
        return layer
    together = graph.call(aten.linear.default, *layer.args, bias, before=reader, like=layer)
    together.meta["val"] = value(reader)
    graph.replace(reader, together)
    graph.module.graph.erase_node(layer)
    return together


def write_linears(graph: Graph) -> None:
    """Products with constant matrices are linear layers from here on, whose weights checkpoints of the model still know."""
    transposes: dict[str, Node] = {}
    for node in graph.calls(*PRODUCTS):
        if (weight := weight_of(graph, node)) is None:
            continue
        name = str(weight.target)
        layer, transposed = write_linear(graph, node, transposes.get(name))
        if transposed:
            transposes[name] = layer.all_input_nodes[1]
        take_bias(graph, layer)
    for name, constant in transposes.items():
        stays = () if str(constant.target) == name else graph.checkpoint.get(name, (Entry(name),))
        graph.checkpoint[name] = (*stays, Entry(str(constant.target), transposed=True))
    graph.refresh()

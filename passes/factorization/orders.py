"""Orders of channels, folded into what is in front or behind.

    index_select(f(W x + b), order)        ->    f(W[order] x + b[order])         f: of single values
    W index_select(x, order)               ->    W[:, order^-1] x
    index_select(index_select(x, p), q)    ->    index_select(x, p[q])            functions of single values may be between

Layers are dense, with a constant weight of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.calls import operand, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, WEIGHT, Layer
from graphopt.ir.ops import aten, function_of_one

SELECT = aten.index_select.default


def fold_orders(graph: Graph) -> int:
    """Fold every order of channels as far as it goes; the number that is gone."""
    gone = 0
    for node in graph.calls(SELECT):
        if _is_order(graph, node) and (_ahead(graph, node) or _behind(graph, node)):
            graph.replace(node, operand(node))
            gone += 1
    if gone:
        graph.refresh()
    return gone


def _is_order(graph: Graph, node: Node) -> bool:
    """Whether all channels are there, each once."""
    order = node.args[2]
    if not isinstance(order, Node) or not graph.is_constant(order):
        return False
    count = shape(operand(node))[_dim(node)]
    return isinstance(count, int) and torch.equal(graph.tensor(order).sort().values, torch.arange(count))


def _dim(node: Node) -> int:
    dim = node.args[1]
    assert isinstance(dim, int)
    return dim % len(shape(operand(node)))


def _order(graph: Graph, node: Node) -> Tensor:
    return graph.tensor(operand(node, 2))


def _behind(graph: Graph, node: Node) -> bool:
    """Into the next order, or the columns of the layer behind."""
    order, end = _order(graph, node), node
    while len(end.users) == 1 and function_of_one(next(iter(end.users))) is not None:
        end = next(iter(end.users))
    if len(end.users) != 1:
        return False
    (reader,) = end.users
    if reader.target is SELECT and _is_order(graph, reader) and _dim(reader) == _dim(node):
        graph.set_constant(reader, 2, order[_order(graph, reader)])
        return True
    layer = Layer.of(reader)
    if layer is None or layer.input is not end or not _dense(graph, layer) or layer.channel_dim != _dim(node):
        return False
    graph.set_constant(reader, WEIGHT, graph.tensor(layer.weight)[:, torch.argsort(order)].contiguous())
    return True


def _ahead(graph: Graph, node: Node) -> bool:
    """Into the rows of the layer in front."""
    order, source = _order(graph, node), operand(node)
    while len(source.users) == 1 and function_of_one(source) is not None:
        source = operand(source)
    layer = Layer.of(source)
    if layer is None or len(source.users) != 1 or not _dense(graph, layer) or layer.channel_dim != _dim(node):
        return False
    if layer.bias is not None:
        if not graph.is_constant(layer.bias):
            return False
        graph.set_constant(source, BIAS, graph.tensor(layer.bias)[order].contiguous())
    graph.set_constant(source, WEIGHT, graph.tensor(layer.weight)[order].contiguous())
    return True


def _dense(graph: Graph, layer: Layer) -> bool:
    own = graph.is_constant(layer.weight) and len(layer.weight.users) == 1
    return own and layer.groups == 1 and layer.kind != "conv_transpose"

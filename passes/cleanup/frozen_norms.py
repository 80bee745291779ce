"""Batch norm that was written as one multiply and one add by constants, as networks for detection freeze it.

    add(mul(Wx + b, s), t),   s, t: one number for each channel   ->   W' = W * s[:, None, ...],   b' = b * s + t

Needs:  constant weight, bias, s and t; nobody else reads between them.
Keeps:  outputs, up to float rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.binary import Binary
from graphopt.ir.calls import argument, same_sizes, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.ops import aten
from graphopt.ir.passes import Change


def fold_frozen_norms(graph: Graph) -> list[Change]:
    """Fold each into the convolution or linear layer in front of it."""
    return [change for node in graph.calls(aten.add.Tensor) if (change := _fold(graph, node)) is not None]


def _fold(graph: Graph, added: Node) -> Change | None:
    scaled = _beside_constant(graph, added, "add")
    inner = _beside_constant(graph, scaled[0], "mul") if scaled is not None else None
    layer = Layer.of(inner[0]) if inner is not None else None
    if scaled is None or inner is None or layer is None:
        return None
    if not all(c is None or graph.is_constant(c) for c in (layer.weight, layer.bias)):
        return None
    (product, t), (_, s) = scaled, inner
    scale, shift = (_by_channel(graph.tensor(constant), layer) for constant in (s, t))
    alone = all(len(node.users) == 1 for node in (layer.node, product))
    if scale is None or shift is None or not alone or not same_sizes(shape(added), shape(layer.node)):
        return None
    weight = layer.canonical(graph.tensor(layer.weight))
    bias = graph.tensor(layer.bias).double() if layer.bias is not None else torch.zeros_like(shift)
    site = graph.site(added)
    graph.set_constant(layer.node, WEIGHT, layer.native((weight * layer.over_outputs(scale)).to(weight.dtype)))
    graph.set_bias(layer.node, (bias * scale + shift).to(weight.dtype))
    graph.replace(added, layer.node)
    return Change(site, f"folded into {graph.site(layer.node)} in front of it")


def _beside_constant(graph: Graph, node: Node, kind: str) -> tuple[Node, Node] | None:
    """The computed operand of a call of this kind, and the constant one."""
    pair = Binary.of(node)
    if pair is None or pair.kind != kind or len(pair.tensors) != 2 or (kind == "add" and argument(node, "alpha") != 1):
        return None
    one, other = pair.tensors
    if graph.is_constant(one):
        one, other = other, one
    return (one, other) if graph.is_constant(other) and not graph.is_constant(one) else None


def _by_channel(constant: Tensor, layer: Layer) -> Tensor | None:
    """One number for each output channel, float64; None where the constant is something else."""
    behind = len(shape(layer.node)) - 1 - layer.channel_dim
    sizes = [1] * (len(shape(layer.node)) - constant.dim()) + list(constant.shape)
    wanted = [1] * layer.channel_dim + [layer.out_channels] + [1] * behind
    return constant.double().reshape(-1) if constant.is_floating_point() and sizes == wanted else None

"""Constants that belong to quantizers and are learned: at the rate of scales, without decay."""

from __future__ import annotations

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.facts import declare
from graphopt.ir.graph import Graph

QUANTIZER_PARAMETER = declare("quantizer_parameter", bool, saved=False)


def parameter_of(graph: Graph, name: str, value: Tensor, *, before: Node) -> Node:
    """A new trainable constant that belongs to a quantizer."""
    node = graph.add_constant(name, value, before=before)
    graph.make_parameter(node)
    graph.set_fact(node, QUANTIZER_PARAMETER, True)
    return node

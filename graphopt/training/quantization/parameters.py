"""Constants that belong to quantizers and are learned (at the rate of scales, without decay), and constants under names that
they had before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def put_back(graph: Graph, name: str, value: Tensor, *, before: Node, like: Sequence[Node] = ()) -> Node:
    """A constant under the name that it had before, where nothing else has that name now; else under one like it.

    Args:
        like: as of `Graph.add_constant`.
    """
    kept = next((n for n in graph.nodes if n.op == "get_attr" and n.target == name), None)
    if kept is not None and kept < before:
        now = graph.tensor(kept)
        if now.dtype == value.dtype and torch.equal(now, value):
            return kept
        if not kept.users:
            graph.put_constant(kept, value)
            return kept
    return graph.add_constant(name, value, before=before, like=like)

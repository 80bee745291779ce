"""`squeeze` where a size is free: it drops a size of one, so one graph cannot be right for every size.

squeeze(x), x: [N, 4, 1]     ->   squeeze(x, dims=[2])      the batch stays a dimension, also where it is one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import Node

from graphopt.ir.calls import argument
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import is_free

aten = torch.ops.aten


def keep_free(graph: Graph) -> list[Node]:
    """Let no `squeeze` drop a free size; returns those that might have."""
    found = [
        node
        for node in graph.calls(*_DIMENSIONS)
        if any(is_free(_sizes(node)[d]) for d in _DIMENSIONS[node.target](node))
    ]
    for node in found:
        source, sizes = node.all_input_nodes[0], _sizes(node)
        single = [d for d in _DIMENSIONS[node.target](node) if not is_free(sizes[d]) and sizes[d] == 1]
        new = graph.call(aten.squeeze.dims, source, single, before=node) if single else source
        graph.replace(node, new)
    if found:
        graph.refresh()
    return found


def _sizes(node: Node) -> list[int]:
    return list(node.all_input_nodes[0].meta["val"].shape)


def _all(node: Node) -> list[int]:
    return list(range(len(_sizes(node))))


def _named(node: Node) -> list[int]:
    named = argument(node, "dim")
    rank = len(_sizes(node))
    return [d % rank for d in (named if isinstance(named, (list, tuple)) else [named])] if rank else []


_DIMENSIONS: dict[Any, Callable[[Node], list[int]]] = {
    aten.squeeze.default: _all,
    aten.squeeze.dim: _named,
    aten.squeeze.dims: _named,
}

"""Calls by which a sample goes one way or another: one of two values, and the best of several.

choose      where(test, opened, closed)
best        which of the scores of a sample are the `take` largest; of those that are equal, the first
"""

from __future__ import annotations

import torch
from torch.fx.node import Node

from graphopt.ir.calls import shape, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten


def choose(graph: Graph, test: Node, opened: Node, closed: Node, *, behind: Node, like: Node, dims: int = 2) -> Node:
    """What read `opened` reads the result: that where the test is true, else `closed`.

    Args:
        test: [N, C] where `dims` is 2, else of the dimensions of `opened`. behind: the call after all three.
    """
    readers = list(opened.users)
    condition = spread(graph, test, dims, value(like).dim(), before=behind)
    call = graph.call(aten.where.self, condition, opened, closed, before=behind, like=like)
    for reader in readers:
        reader.replace_input_with(opened, call)
    return call


def spread(graph: Graph, node: Node, dims: int, wanted: int, *, before: Node) -> Node:
    """A value of so many dimensions with others of length 1 behind, until they are as many as wanted."""
    for dim in range(dims, wanted):
        node = graph.call(aten.unsqueeze.default, node, dim, before=before, like=node)
    return node


def best(graph: Graph, scores: Node, take: int, name: str, *, before: Node) -> Node:
    """Which of the scores [..., E] are taken, bool [..., E]: always so many, as every runtime breaks ties.

        take = 1    argmax(scores) == 0, 1, ...
        take > 1    how many are ahead of each, less than take        ahead: larger, or as large and in front of it

    Args:
        name: begins the names of constants.
    """

    def call(target: object, *args: object) -> Node:
        return graph.call(target, *args, before=before, like=scores)  # type: ignore[arg-type]

    count = int(shape(scores)[-1])
    if take == 1:
        numbers = graph.add_constant(f"{name}.numbers", torch.arange(count), before=before)
        return call(aten.eq.Tensor, call(aten.argmax.default, scores, -1, True), numbers)
    in_front = graph.add_constant(f"{name}.in_front", torch.ones(count, count).tril(-1).bool(), before=before)
    others, own = call(aten.unsqueeze.default, scores, -2), call(aten.unsqueeze.default, scores, -1)
    as_large, larger = call(aten.ge.Tensor, others, own), call(aten.gt.Tensor, others, own)
    ahead = call(aten.sum.dim_IntList, call(aten.where.self, in_front, as_large, larger), [-1])
    return call(aten.lt.Scalar, ahead, take)

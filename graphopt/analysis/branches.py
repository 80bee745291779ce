"""Residual branches: where a sum adds something to the value that it was computed from."""

from __future__ import annotations

from typing import NamedTuple

from torch.fx.node import Node

from graphopt.analysis.channels.trace import sizes
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family


class Branch(NamedTuple):
    """A sum and its two operands: what stays, and the branch."""

    total: Node
    stream: Node
    branch: Node


def branches(graph: Graph) -> list[Branch]:
    """The residual branches: sums of a value and of something computed from it, of the same shape."""
    found = []
    for node in graph.calls():
        operands = [a for a in node.args[:2] if isinstance(a, Node)]
        if family(node) != "add" or len(operands) != 2 or len({tuple(sizes(value(n))) for n in (*operands, node)}) != 1:
            continue
        for stream, branch in (operands, operands[::-1]):
            if branch is not stream and _reaches(stream, branch):
                found.append(Branch(node, stream, branch))
                break
    return found


def _reaches(start: Node, end: Node) -> bool:
    seen, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node is start:
            return True
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return False

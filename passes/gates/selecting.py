"""Where a sample goes one way or the other: calls that take one of two values."""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family, info
from graphopt.passes.gates.blocks import Block


def result_of(block: Block) -> Node:
    """What a block gives: its sum, or the ReLU that alone reads it."""
    reader = next(iter(block.total.users), None)
    return reader if reader is not None and len(block.total.users) == 1 and family(reader) == "relu" else block.total


def gate_block(graph: Graph, block: Block, test: Node, dims: int = 2) -> Node:
    """Compute a block where a test (see `choose`) is true, else go past it; what everything behind reads then."""
    opened, closed = block.total, block.shortcut
    if len(opened.users) == 1 and family(activation := next(iter(opened.users))) == "relu":
        if not _positive(closed):
            closed = graph.call(activation.target, closed, before=graph.after(activation), like=activation)
        opened = activation
    behind = graph.after(max(opened, closed, test))
    return choose(graph, test, opened, closed, behind=behind, like=block.total, dims=dims)


def _positive(node: Node) -> bool:
    """Whether a value is at least 0 all over: from ReLU, or moved, or chosen of such."""
    while (known := info(node)).homogeneous and known.monotone and known.family not in ("relu", None):
        node = operand(node)
    sides: Any = node.args[1:3] if node.target is aten.where.self else ()
    return known.family == "relu" or (bool(sides) and all(map(_positive, sides)))


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

"""Residual blocks that a sample takes or goes past."""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from graphopt.analysis.blocks import Block
from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family, info
from graphopt.ir.selecting import choose


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

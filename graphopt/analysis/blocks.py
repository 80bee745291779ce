"""Residual blocks that a sample can go past: a sum of a branch and of a shortcut that costs next to nothing.

x + f(x)     the shortcut is x itself
s(x) + f(x)  or what is made of x alone, such as the convolution of one position in front of a smaller map
"""

from __future__ import annotations

from typing import NamedTuple

from torch.fx.node import Node

from graphopt.analysis.branches import branches
from graphopt.analysis.channels.trace import sizes
from graphopt.ir import cost
from graphopt.ir.batches import of_samples
from graphopt.ir.calls import is_float, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.ir.reading import leading, varying

CHEAP = 0.25  # of the branch's multiply-accumulates, which a shortcut has at most


class Block(NamedTuple):
    """A sum, what stays where its branch is left out, the branch, and the value that both are computed from."""

    name: str
    total: Node
    shortcut: Node
    branch: Node
    entry: Node


def blocks(graph: Graph) -> list[Block]:
    """All of a graph, in execution order; left out are those around others, and those that cannot be decided sample by sample."""
    work, moving = cost.layer_macs(graph), varying(graph)
    same = {found.total: found for found in branches(graph)}
    result = []
    for node in graph.calls():
        if node in same:
            stream, branch = same[node].stream, same[node].branch
            inside = leading(branch) - leading(stream)
            if _macs(inside, work):
                result.append((Block(graph.site(node), node, stream, branch, stream), inside))
        elif (found := _with_shortcut(graph, node, work, moving)) is not None:
            result.append(found)
    totals = {block.total for block, _ in result}
    return [block for block, inside in result if inside.isdisjoint(totals) and _decides(graph, block)]


def _decides(graph: Graph, block: Block) -> bool:
    """Whether what a block reads says something about each sample by itself, and what it gives is of as many."""
    sizes = [value(node).shape for node in (block.entry, block.total)]
    return is_float(block.entry) and of_samples(graph, block.entry) and len({str(size[0]) for size in sizes}) == 1


def _with_shortcut(
    graph: Graph, node: Node, work: dict[Node, int], moving: set[Node]
) -> tuple[Block, set[Node]] | None:
    operands = [each for each in node.args[:2] if isinstance(each, Node) and each in moving]
    if family(node) != "add" or len(operands) != 2 or len({tuple(sizes(value(n))) for n in (*operands, node)}) != 1:
        return None
    one, other = (leading(each) for each in operands)
    macs = _macs(one - other, work), _macs(other - one, work)
    place = int(macs[1] > macs[0])
    inside = (one - other) | (other - one)
    entries = {source for each in inside for source in each.all_input_nodes if source in moving} - inside
    if macs[place] == 0 or macs[1 - place] > CHEAP * macs[place] or len(entries) != 1:
        return None
    return Block(graph.site(node), node, operands[1 - place], operands[place], entries.pop()), inside


def _macs(nodes: set[Node], work: dict[Node, int]) -> int:
    return sum(work.get(node, 0) for node in nodes)

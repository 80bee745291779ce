"""Bring activations in front of moves: what clips, value by value, is done where the values are made.

    layer -> transpose -> relu      =>      layer -> relu -> transpose

There it costs nothing, and the value needs one grid in place of two. (Two quantizers with nothing between them would be merged
by the runtime into one that answers neither what the first nor what the second says.)

Keeps:  every value; max pooling and clipping both are monotone, so they commute.
"""

from __future__ import annotations

from collections.abc import Collection

from torch.fx.node import Node

from graphopt.ir.calls import gives_several, operand, value
from graphopt.ir.graph import Graph
from graphopt.ir.ops import clip_of, family, info
from graphopt.ir.passes import Change
from graphopt.passes.quantization.placement import in_integer
from graphopt.targets import Kernels


def clip_before_moves(graph: Graph, kernels: Kernels) -> list[Change]:
    """Do so where an operator with an integer kernel makes the value, and nothing else reads it on the way."""
    changes = []
    for node in graph.calls():
        if (ends := clip_of(node)) is None:
            continue
        first, source = _moved(node, ends, kernels.moves)
        if first is None or not in_integer(source, kernels) or len(source.users) > 1:
            continue
        clipped = graph.call(node.target, source, *node.args[1:], before=first, like=node, **node.kwargs)
        clipped.meta["val"] = value(source)
        first.replace_input_with(source, clipped)
        graph.replace(node, operand(node))
        changes.append(Change(graph.site(clipped), f"{family(clipped)} in front of {family(first)}"))
    return changes


def _moved(clip: Node, ends: tuple[float, float], moves: Collection[str]) -> tuple[Node | None, Node]:
    """The first of the moves in front of a clip (None where there is none), and what it moves."""
    first, source = None, operand(clip)
    while family(source) in moves and len(source.users) == 1 and not gives_several(source.args[0]):
        zeros = family(source) == "pad" and ends[0] <= 0 <= ends[1]
        if not (info(source).selects or zeros):
            break
        first, source = source, operand(source)
    return first, source

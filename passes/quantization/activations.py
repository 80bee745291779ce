"""Bring activations in front of moves: what clips, value by value, is done where the values are made.

    layer -> transpose -> relu      =>      layer -> relu -> transpose

There it costs nothing, and the value needs one grid in place of two. (Two quantizers with nothing between them would be merged
by the runtime into one that answers neither what the first nor what the second says.)

Keeps:  every value; max pooling and clipping both are monotone, so they commute.
"""

from __future__ import annotations

from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.ops import clamp_bounds, family, value
from graphopt.ir.passes import Change
from graphopt.targets import Target

CLIPS = frozenset({"relu", "clamp"})
COMMUTES = frozenset(
    {"reshape", "transpose", "slice", "shuffle", "resize_nearest", "expand", "identity", "max_pool", "pad"}
)


def clip_before_moves(graph: Graph, target: Target) -> list[Change]:
    """Do so where an operator with an integer kernel makes the value, and nothing else reads it on the way."""
    changes = []
    for node in graph.calls():
        if family(node) not in CLIPS:
            continue
        first, source = _moved(node)
        if first is None or family(source) not in target.integer or len(source.users) > 1:
            continue
        clipped = graph.call(node.target, source, *node.args[1:], before=first, like=node, **node.kwargs)
        clipped.meta["val"] = value(source)
        first.replace_input_with(source, clipped)
        graph.replace(node, node.args[0])  # type: ignore[arg-type]
        changes.append(Change(graph.site(clipped), f"{family(clipped)} in front of {family(first)}"))
    return changes


def _moved(clip: Node) -> tuple[Node | None, Node]:
    """The first of the moves in front of a clip (None where there is none), and what it moves."""
    low, high = clamp_bounds(clip)
    first, source = None, clip.args[0]
    while isinstance(source, Node) and family(source) in COMMUTES and len(source.users) == 1:
        if family(source) == "pad" and not low <= 0 <= high:
            break
        first, source = source, source.args[0]
    assert isinstance(source, Node)
    return first, source

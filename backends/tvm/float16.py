"""Keep float16 values in float16: what `deploy` writes as conversions becomes the type of kernels' arguments.

    h = half(x); y = float(h)                  one value, stored in 16 bits
    half(max_pool(float(h)))               ->  max_pool(h)          likewise mean of an image, reshape, concat, ...
    half(relu(conv(float(h)) + float(g)))  ->  one kernel that reads and writes float16, and sums in float32

Everything else computes in float32 between conversions, which TVM fuses with it.
"""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from graphopt.backends.tvm.codes import moves_codes
from graphopt.ir.calls import argument
from graphopt.ir.float16 import half_of, narrows
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten, family
from graphopt.lowering.qdq import deploy as deploy_with
from graphopt.targets import Target


def deploy(graph: Graph, target: Target | None = None) -> Graph:
    """A deployed copy of a simulated graph; float16 stays float16, and other formats that are not uniform become float."""
    return deploy_with(graph, half=True)


def keep_float16(graph: Graph) -> None:
    """Rewrite a deployed graph in place: moves and means between two conversions take float16."""
    for node in graph.calls(aten.to.dtype):
        if narrows(node):
            source: Any = node.args[0]
            moved = _moved(graph, source, before=node)
            if moved is not None:
                graph.replace(node, moved)
    graph.module.graph.eliminate_dead_code()


def _moved(graph: Graph, node: Node, *, before: Node) -> Node | None:
    """This value in float16, if it comes from one by an operator that has a kernel for them."""
    half = half_of(node)
    if half is not None:
        return half
    kind, target = family(node), node.target
    if len(node.users) != 1:
        return None
    options: dict[str, Any] = dict(node.kwargs)
    if kind == "global_average_pool":  # whose kernel sums in float32
        if (inner := half_of(node.args[0])) is None:
            return None
        moved = graph.call(target, inner, *node.args[1:], before=before, like=node)
    elif kind == "concat":
        parts = [half_of(part) for part in node.args[0]]  # type: ignore[union-attr]
        if any(part is None for part in parts):
            return None
        moved = graph.call(target, parts, argument(node, "dim"), before=before, like=node)
    elif moves_codes(node) and len(node.all_input_nodes) == 1:
        inner = _moved(graph, node.all_input_nodes[0], before=before)
        if inner is None:
            return None
        moved = graph.call(target, inner, *node.args[1:], before=before, like=node, **options)
    else:
        return None
    moved.meta["val"] = node.meta["val"].half()
    return moved

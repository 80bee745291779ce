"""A captured module of one input as calls of another graph."""

from __future__ import annotations

from torch import nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph


def inline(graph: Graph, part: Graph, source: Node, name: str, *, before: Node | None = None) -> Node:
    """Compute `part` of a value; its result.

    Args:
        name: begins the names of its constants and modules.
        before: the call that it is computed in front of; None: behind everything else.
    """
    (given,), end = part.inputs, before or graph.output
    copies: dict[Node, Node] = {given: source}
    for node in part.nodes:
        if node.op == "get_attr":
            value = part.parameter(node)
            copies[node] = graph.add_constant(f"{name}.{node.target}", value, before=end)
            if isinstance(value, nn.Parameter):
                graph.make_parameter(copies[node])
        elif node.op == "call_function":
            with graph.module.graph.inserting_before(end):
                copies[node] = graph.module.graph.node_copy(node, copies.__getitem__)
            stack = node.meta.get("nn_module_stack") or {}
            inside = {
                f"{name}.{key}": (f"{name}.{path}" if path else name, kind) for key, (path, kind) in stack.items()
            }
            copies[node].meta["nn_module_stack"] = {name: (name, type(part)), **inside}
    return copies[part.outputs[0]]

"""Copies of calls with weights of their own."""

from __future__ import annotations

from torch.fx.node import Node

from graphopt.ir.graph import Graph


def copied(graph: Graph, calls: list[Node], end: Node, name: str, *, before: Node) -> Node:
    """Copies of these calls, whose constants of floats are copied with them; that of `end`.

    Args:
        name: ends the names of modules: those of `layer.0` become `layer.0.<name>`.
    """
    copies: dict[Node, Node] = {}

    def own(node: Node) -> Node:
        if node not in copies and node.op == "get_attr" and graph.parameter(node).is_floating_point():
            path, _, leaf = str(node.target).rpartition(".")
            value = graph.tensor(node).clone()
            copies[node] = graph.add_constant(
                ".".join(filter(None, (path, name, leaf))), value, before=before, like=[node]
            )
        return copies.get(node, node)

    for call in calls:
        for source in call.all_input_nodes:
            own(source)
        with graph.module.graph.inserting_before(before):
            copies[call] = graph.module.graph.node_copy(call, own)
        stack = dict(call.meta.get("nn_module_stack") or {})
        if stack:
            key, (path, kind) = list(stack.items())[-1]
            stack[key] = (f"{path}.{name}" if path else name, kind)
            copies[call].meta["nn_module_stack"] = stack
    return copies[end]

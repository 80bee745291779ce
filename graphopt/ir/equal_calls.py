"""Calls that compute what an earlier one has computed: the same operator on the same arguments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx.node import Node, map_arg

from graphopt.ir.graph import Graph
from graphopt.ir.ops import is_random

Same = Callable[[Tensor, Tensor], bool]


def equal_calls(graph: Graph, same: Same) -> dict[Node, Node]:
    """Each constant and call that is the same as one before it -> the first of them.

    Args:
        same: whether one constant may stand for another: `operator.is_` where either may still be trained, `torch.equal` where
            neither changes any more.
    """
    first: dict[tuple[object, ...], Node] = {}
    constants: dict[tuple[object, ...], list[Node]] = {}
    found: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            tensor = graph.parameter(node)
            alike = constants.setdefault((tensor.dtype, tensor.shape), [])
            twin = next((other for other in alike if same(graph.parameter(other), tensor)), None)
            alike.append(node) if twin is None else found.update({node: twin})
        elif node.op == "call_function" and not is_random(node):
            arguments = map_arg((node.args, node.kwargs), lambda source: found.get(source, source))
            twin = first.setdefault((node.target, repr(arguments)), node)  # unlike ==, repr tells 1, 1.0 and True apart
            if twin is not node:
                found[node] = twin
    return found


def merge_equal_calls(graph: Graph, same: Same) -> list[tuple[str, str]]:
    """Let every reader read the first of equal calls; the sites of each call that is gone and of the one that stays."""
    pairs = [(node, twin) for node, twin in equal_calls(graph, same).items() if node.op == "call_function"]
    sites = [(graph.site(node), graph.site(twin)) for node, twin in pairs]
    for node, twin in pairs:
        graph.replace(node, twin)
    return sites

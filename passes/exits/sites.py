"""Where exits may be: values that everything on the way from the inputs to the answer goes through, its dominators.

Of those with the same work in front of them, the last counts: of a convolution, its batch norm and its activation that is the
activation. Values that are pooled or flattened already are no sites, nor are those whose first dimension does not count samples.
"""

from __future__ import annotations

from typing import NamedTuple

import networkx as nx
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir import cost
from graphopt.ir.batches import of_samples
from graphopt.ir.graph import Graph
from graphopt.ir.reading import leading, varying


class Site(NamedTuple):
    """A value where an exit may be. name: of the module that made it. share: of the multiply-accumulates that lead to it."""

    node: Node
    name: str
    share: float


def sites(graph: Graph) -> list[Site]:
    """All of a graph with one answer, in execution order."""
    work = cost.layer_macs(graph)
    total, found = sum(work.values()) or 1, dict[int, Site]()
    shapes = {node: tuple(node.meta["val"].shape) for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    for node in dominators(graph):
        before = sum(work[each] for each in leading(node) if each in work)
        if before == 0 or before == total or len(shapes.get(node, ())) not in (3, 4):
            continue
        if not of_samples(graph, node):
            continue
        known = found.get(before)
        if known is None or _alike(shapes[known.node], shapes[node]):
            found[before] = Site(node, graph.site(node), before / total)
    return list(found.values())


def _alike(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(str(a) == str(b) for a, b in zip(one, other, strict=True))


def dominators(graph: Graph) -> list[Node]:
    """The calls that every way from an input to the answer goes through, in execution order, the answer itself left out."""
    (answer,) = graph.outputs
    flow, root, moving = nx.DiGraph(), "inputs", varying(graph)
    for call in graph.calls():
        flow.add_edges_from((source, call) for source in call.all_input_nodes if source in moving)
    flow.add_edges_from((root, node) for node in graph.inputs if node in flow)
    above = nx.immediate_dominators(flow, root)
    found, node = list[Node](), above.get(answer)
    while isinstance(node, Node) and node.op == "call_function":
        found.append(node)
        node = above.get(node)
    return found[::-1]

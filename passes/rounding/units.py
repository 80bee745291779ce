"""What is learned together: single layers, or blocks found from the graph.

A *cut* is a value that everything from the inputs to the outputs goes through: a dominator of the end. Between two cuts that
follow each other lies a chain link (one call), or all branches of a residual block, an inception module or a gate. Links and
branches are joined to blocks that begin in front of a layer and hold at least `BLOCK` layers, or one group of branches:

    input | conv relu q | conv relu q  conv q  add relu q | ... | mean linear          (q: quantizer; | : where blocks end)

What lies between the same two cuts can hold the whole network, where something leads around everything (a U-Net): with more than
`MOST` layers no block is formed, and its layers are learned one by one.

Paper: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", section 3.2.
"""

from __future__ import annotations

import itertools

import networkx as nx
from torch.fx.node import Node

from graphopt.fitting.region import Region
from graphopt.ir.calls import is_float, operand
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family, info
from graphopt.ir.quantizers import is_quantizer
from graphopt.passes.rounding.weights import rounded_layers

BLOCK, MOST = 2, 12  # layers


def layer_units(graph: Graph) -> list[Region]:
    """Each layer with rounded weights, with the calls behind it that work element by element."""
    return [Region.between([operand(node)], _behind(node)) for node in rounded_nodes(graph)]


def block_units(graph: Graph) -> list[Region]:
    """Blocks, in execution order; layers of their own where no block can be formed."""
    cuts, wanted = find_cuts(graph), set(rounded_nodes(graph))
    units: list[Region] = []
    held: list[list[Node]] = []  # layers of the links joined so far
    start = end = cuts[0] if cuts else None
    for before, after in itertools.pairwise(cuts):
        layers = [node for node in Region.between([before], after).nodes if node in wanted]
        full = sum(map(len, held)) >= BLOCK or any(len(link) > 1 for link in held)
        if held and layers and (full or len(layers) > 1):
            units.append(Region.between([start], end))  # type: ignore[list-item, arg-type]
            start, held = end, []
        if len(layers) > MOST:
            start = end = after
        elif layers:
            held.append(layers)
            end = after
        elif held and end is before and _follows(after):
            end = after
    if held:
        units.append(Region.between([start], end))  # type: ignore[list-item, arg-type]
    inside = {node for unit in units for node in unit.nodes}
    units += [unit for unit in layer_units(graph) if unit.first not in inside]
    return sorted(units, key=lambda unit: unit.first)


def find_cuts(graph: Graph) -> list[Node]:
    """The values that everything goes through, in execution order; the input is one where there is only one."""
    flow: nx.DiGraph = nx.DiGraph()
    for node in graph.nodes:
        if node.op == "output":
            flow.add_edges_from((source, "end") for source in node.all_input_nodes)
        elif node.op == "placeholder":
            flow.add_edge("begin", node)
        elif node.op == "call_function":
            flow.add_edges_from((source, node) for source in node.all_input_nodes if source.op != "get_attr")
    if "begin" not in flow or not nx.has_path(flow, "begin", "end"):
        return []
    above = nx.immediate_dominators(flow, "begin")
    cuts: list[Node] = []
    node = above["end"]
    while isinstance(node, Node):
        cuts.append(node)
        node = above[node]
    return [cut for cut in reversed(cuts) if is_float(cut)]


def rounded_nodes(graph: Graph) -> list[Node]:
    """The layers whose weights are rounded, in execution order."""
    return [found.layer.node for found in rounded_layers(graph)]


def _behind(node: Node) -> Node:
    """The last of the element-by-element calls that alone read a layer's result."""
    while len(node.users) == 1 and _follows(reader := next(iter(node.users))):
        node = reader
    return node


def _follows(node: Node) -> bool:
    return info(node).pointwise or family(node) in ("batch_norm", "identity") or is_quantizer(node)

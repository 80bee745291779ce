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
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch.fx.node import Node

from graphopt.execution.reference import unquantized
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family, info, is_float, value
from graphopt.ir.quantizers import is_quantizer
from graphopt.ir.shapes import is_free
from graphopt.passes.rounding.weights import rounded_layers

BLOCK, MOST = 2, 12  # layers


@dataclass(frozen=True)
class Unit:
    """Part of a graph with one result.

    Attributes:
        inputs: the values it reads from outside.
        first: the first of its calls that reads one of them.
        nodes: its calls in execution order, the quantizers of its weights included.
        layers: those of them that are layers with rounded weights.
        output: its result, the last of the calls.
    """

    inputs: list[Node]
    first: Node
    nodes: list[Node]
    layers: list[Node]
    output: Node

    @property
    def by_sample(self) -> bool:
        """Whether samples can be taken one by one: inputs and result have one free first dimension (a table has none), and no
        other, for batches of different sizes have no samples in common."""
        nodes = (*self.inputs, self.output)
        if any(is_free(size) for node in nodes for size in value(unquantized(node)).shape[1:]):
            return False
        sizes = [_first_size(node) for node in nodes]
        return sizes[0] is not None and all(size == sizes[0] for size in sizes)


def layer_units(graph: Graph) -> list[Unit]:
    """Each layer with rounded weights, and what is computed of its result element by element."""
    return [make_unit([node.args[0]], _behind(node)) for node in rounded_nodes(graph)]  # type: ignore[list-item]


def block_units(graph: Graph) -> list[Unit]:
    """Blocks, in execution order; layers of their own where no block can be formed."""
    cuts, wanted = find_cuts(graph), set(rounded_nodes(graph))
    units: list[Unit] = []
    held: list[list[Node]] = []  # layers of the links joined so far
    start = end = cuts[0] if cuts else None
    for before, after in itertools.pairwise(cuts):
        layers = [node for node in _between([before], after) if node in wanted]
        full = sum(map(len, held)) >= BLOCK or any(len(link) > 1 for link in held)
        if held and layers and (full or len(layers) > 1):
            units.append(make_unit([start], end))  # type: ignore[list-item, arg-type]
            start, held = end, []
        if len(layers) > MOST:
            start = end = after
        elif layers:
            held.append(layers)
            end = after
        elif held and end is before and _follows(after):
            end = after
    if held:
        units.append(make_unit([start], end))  # type: ignore[list-item, arg-type]
    inside = {node for unit in units for node in unit.layers}
    units += [unit for unit in layer_units(graph) if unit.layers[0] not in inside]
    order = {node: position for position, node in enumerate(graph.nodes)}
    return sorted(units, key=lambda unit: order[unit.first])


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


def make_unit(inputs: list[Node], output: Node) -> Unit:
    """The part of a graph that leads from some values to another one."""
    nodes = _between(inputs, output)
    first = next(n for n in nodes if any(source in inputs for source in n.all_input_nodes))
    layers = [n for n in nodes if (layer := Layer.of(n)) is not None and layer.weight.target is FAKE_QUANTIZE]
    return Unit(inputs, first, nodes, layers, output)


def _between(inputs: list[Node], output: Node) -> list[Node]:
    """The calls that lead from some values to another one, in execution order."""
    found, todo = set[Node](), [output]
    while todo:
        node = todo.pop()
        if node in found or node in inputs or node.op != "call_function":
            continue
        found.add(node)
        todo.extend(node.all_input_nodes)
    return sorted(found)


def _behind(node: Node) -> Node:
    """The last of the element-by-element calls that alone read a layer's result."""
    while len(node.users) == 1 and _follows(reader := next(iter(node.users))):
        node = reader
    return node


def _follows(node: Node) -> bool:
    return info(node).pointwise or family(node) in ("batch_norm", "identity") or is_quantizer(node)


def _first_size(node: Node) -> Any:
    """The free first dimension of a value as an expression; None where there is none."""
    found = value(unquantized(node))
    return found.shape[0].node.expr if found.dim() and is_free(found.shape[0]) else None

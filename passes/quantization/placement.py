"""Where quantizers go: decided by the target's integer kernels, before any data is seen.

An integer *unit* is an operator with an integer kernel together with the activation fused into it. Units start at
convolutions and linear layers; other operators with integer kernels join when one of their inputs already is integer and an
integer unit, or the caller, reads the result: a sum between two layer norms, say, stays float. Operators that only move
values carry codes through.

A sum that the target computes behind one of its layers (`Kernels.fused_sums`) takes that layer's result as it is: only the other
operand and the sum are rounded.

Each value that has to be integer gets a *grid*. Values that must have the same grid (in front of and behind a move, around a
kernel that wants equal scales) share one. A float value that an integer unit reads is quantized on that edge only: its float
readers keep the exact value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import networkx as nx
from torch.fx.node import Node

from graphopt.formats import NumberFormat
from graphopt.ir.calls import is_float, operand, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family, function_of_one, info
from graphopt.ir.quantizers import is_quantizer
from graphopt.targets import Kernels


def in_integer(node: Node, kernels: Kernels) -> bool:
    """Whether there is an integer kernel for a call, or a table. Clips have no kernels of their own."""
    known = info(node)
    looked_up = kernels.tables and not known.fusable and function_of_one(node) is not None
    return known.family in kernels.integer or looked_up


@dataclass(frozen=True)
class LayerFormat:
    """Formats of one layer, where they differ from the target's: weights, and the values it produces."""

    weights: NumberFormat | None = None
    activations: NumberFormat | None = None


@dataclass
class SharedGrid:
    """One quantization grid and the values on it."""

    format: NumberFormat
    produced: list[Node] = field(default_factory=list)  # ends of units: every reader sees the quantized value
    moved: list[Node] = field(default_factory=list)  # likewise, but their range is that of what they move
    entered: list[tuple[Node, list[Node]]] = field(default_factory=list)  # float values and their integer readers

    @property
    def observed(self) -> list[Node]:
        return self.produced + [value for value, _ in self.entered]


@dataclass
class QuantizationPlan:
    """What is integer: layers with their weight format, and the grids of the values between units."""

    layers: dict[Node, NumberFormat]
    grids: list[SharedGrid]
    left: dict[Node, str]  # layers that stay float, and why
    operators: dict[Node, Node]  # the last call of every unit -> its operator, whose name a value's format goes by
    rest: list[Node]  # calls that compute in float


def override(name: str, formats: Mapping[str, LayerFormat | None]) -> tuple[bool, LayerFormat | None]:
    """Whether a pattern matches this layer's name, and the first match's value (None excludes the layer)."""
    for pattern, value in formats.items():
        if fnmatchcase(name, pattern):
            return True, value
    return False, None


def place(
    graph: Graph,
    kernels: Kernels,
    weights: NumberFormat,
    activations: NumberFormat,
    formats: Mapping[str, LayerFormat | None],
    floating: Mapping[Node, str] | None = None,
) -> QuantizationPlan:
    """Decide what is computed in integer. See the head of this file. `floating`: calls that stay float, and why."""
    return _Placement(graph, kernels, weights, activations, formats, floating or {}).plan()


class _Placement:
    def __init__(
        self,
        graph: Graph,
        kernels: Kernels,
        weights: NumberFormat,
        activations: NumberFormat,
        formats: Mapping[str, LayerFormat | None],
        floating: Mapping[Node, str],
    ) -> None:
        self.graph, self.kernels, self.formats, self.floating = graph, kernels, formats, floating
        self.weights, self.activations = weights, activations
        self.layers: dict[Node, NumberFormat] = {}
        self.left: dict[Node, str] = {}
        self.ends: dict[Node, Node] = {}  # last node of a unit -> its operator
        self.float_ends: set[Node] = set()
        self.fused: set[Node] = set()  # layers whose sum is computed behind them
        self.moves: dict[Node, None] = {}  # an ordered set

    def plan(self) -> QuantizationPlan:
        for node in self.graph.nodes:
            self.visit(node)
        self.keep_what_is_read()
        if self.kernels.fused_sums:
            self.fuse_sums()
        return QuantizationPlan(self.layers, self.grids(), self.left, self.ends, self.rest())

    # ---- Which operators are integer --------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        kind, known = family(node), info(node)
        integer = in_integer(node, self.kernels)
        if node in self.floating:
            self.left[node] = self.floating[node]
            return
        excluded, chosen = override(self.graph.site(node), self.formats) if kind else (False, None)
        if kind is None or (excluded and chosen is None):
            if known.layer and kind != "conv_transpose":
                self.left[node] = "excluded by name"
            return
        if known.layer and integer:
            self.start(node, chosen)
        elif known.fusable and self.fuses(node):
            self.ends[node] = self.ends.pop(_data(node)[0])
        elif kind in self.kernels.moves:
            if (source := _moved(node)) is not None and (source in self.ends or source in self.moves):
                self.moves[node] = None
        elif (integer or known.fusable) and is_float(node) and self.joins(node):
            self.ends[node] = node
        elif kind == "conv_transpose":
            self.left[node] = "there is no integer kernel for transposed convolutions"

    def start(self, node: Node, chosen: LayerFormat | None) -> None:
        layer = Layer.of(node)
        assert layer is not None
        if is_quantizer(layer.weight):
            self.left[node] = "its weights alone are quantized"
        elif not self.graph.is_constant(layer.weight) or (
            layer.bias is not None and not self.graph.is_constant(layer.bias)
        ):
            self.left[node] = "its weight is computed by the graph"
        elif not is_float(node) or not is_float(layer.input):
            self.left[node] = "not a float operator"
        else:
            self.layers[node] = chosen.weights if chosen and chosen.weights else self.weights
            self.ends[node] = node

    def fuses(self, node: Node) -> bool:
        source = _data(node)
        return len(source) == 1 and source[0] in self.ends and len(source[0].users) == 1

    def joins(self, node: Node) -> bool:
        return any(source in self.ends or source in self.moves for source in _data(node))

    def keep_what_is_read(self) -> None:
        """Leave out what only float operators read: there the way back to float would cost more than integers save.

        Layers stay, but those that may produce float do so. From the last unit to the first, so that readers are decided.
        """
        end_of = {operator: end for end, operator in self.ends.items()}
        kept = set(end_of)

        def read(value: Node, *, output: bool) -> bool:
            return any(
                reader in kept
                or (output and reader.op == "output")
                or (reader in self.moves and read(reader, output=output))
                for reader in value.users
            )

        for operator, end in reversed(end_of.items()):
            kind = family(operator)
            if info(operator).layer:
                if kind in self.kernels.float_output and not read(end, output=False):
                    self.float_ends.add(end)
            elif not read(end, output=self.mostly_integer(operator)):
                kept.remove(operator)
                del self.ends[end]
        integer = set(self.ends) - self.float_ends
        for move in list(self.moves):
            if _moved(move) in integer:
                integer.add(move)
            else:
                del self.moves[move]

    def fuse_sums(self) -> None:
        """Of the layers that a sum alone reads, the last one computed hands its result over unrounded."""
        order = {node: position for position, node in enumerate(self.graph.nodes)}
        for operator in self.ends.values():
            if family(operator) != "add":
                continue
            layers = [v for v in _data(operator) if v in self.layers and self.ends.get(v) is v and len(v.users) == 1]
            if layers:
                self.fused.add(max(layers, key=order.__getitem__))
        self.float_ends |= self.fused

    def mostly_integer(self, operator: Node) -> bool:
        """Is the largest of its inputs integer? Else the caller is served sooner in float."""
        sources = [source for source in _data(operator) if not self.graph.is_constant(source)]
        most = max(map(_elements, sources))
        return any(source in self.ends or source in self.moves for source in sources if _elements(source) == most)

    def rest(self) -> list[Node]:
        """Calls of no unit that compute on floats."""
        inside: set[Node] = set(self.moves)
        for end, operator in self.ends.items():
            while end is not operator:
                inside.add(end)
                end = _data(end)[0]
            inside.add(operator)
        calls = [node for node in self.graph.calls() if is_float(node) and node not in inside]
        return [
            node for node in calls if any(is_float(n) and not self.graph.is_constant(n) for n in node.all_input_nodes)
        ]

    # ---- Which values share a grid ----------------------------------------------------------------------------------

    def grids(self) -> list[SharedGrid]:
        ties = nx.Graph()
        entered: dict[Node, list[Node]] = {}
        produced = [end for end in self.ends if end not in self.float_ends]
        integer = {*produced, *self.moves}
        ties.add_nodes_from(produced)
        for move in self.moves:
            ties.add_edge(move, _moved(move))
        for end, operator in self.ends.items():
            for source in _data(operator):
                if source in self.fused:
                    continue
                if source not in integer:
                    entered.setdefault(source, []).append(operator)
                    ties.add_node(("entry", source))
                if family(operator) in self.kernels.shares:
                    ties.add_edge(end, source if source in integer else ("entry", source))
        order = {node: i for i, node in enumerate(self.graph.nodes)}

        def position(key: Node | tuple[str, Node]) -> int:
            return order[key[1] if isinstance(key, tuple) else key]

        found = []
        for component in nx.connected_components(ties):
            members = sorted(component, key=position)
            grid = SharedGrid(self.format_of(members))
            for member in members:
                if isinstance(member, tuple):
                    grid.entered.append((member[1], entered[member[1]]))
                elif member in self.ends:
                    grid.produced.append(member)
                elif is_float(member):  # a split is a list; its parts are quantized one by one
                    grid.moved.append(member)
            found.append((position(members[0]), grid))
        return [grid for _, grid in sorted(found, key=lambda pair: pair[0])]

    def format_of(self, members: list[Node | tuple[str, Node]]) -> NumberFormat:
        for member in members:
            node = self.ends.get(member) if isinstance(member, Node) else None
            if node is not None:
                _, chosen = override(self.graph.site(node), self.formats)
                if chosen and chosen.activations:
                    return chosen.activations
        return self.activations


def _elements(node: Node) -> int:
    """The number of elements of a value, free sizes left out."""
    return math.prod(size for size in shape(node) if isinstance(size, int))


def _data(node: Node) -> list[Node]:
    """The inputs that are values of the graph: for layers the data input, for others every float input (constants too)."""
    if info(node).layer or info(node).pointwise:
        return [operand(node)]
    return [n for n in node.all_input_nodes if is_float(n)]


def _moved(node: Node) -> Node | None:
    source = node.args[0] if node.args else None
    return source if isinstance(source, Node) else None

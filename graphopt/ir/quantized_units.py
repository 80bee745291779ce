"""Which quantizers of a simulated graph belong to which layer.

A *unit* is a layer together with what quantizing it means: its weight, its bias, and the value it produces behind the activation
that is fused into it. What a layer reads was quantized by whoever produced it, so every quantizer belongs to one unit. Other
operators whose results are quantized (sums, pools, products), inputs and constants are units as well; layers that stayed float
are units without quantizers.

A quantizer that repeats the grid in front of a move (reshape, max pooling) changes nothing and goes with the unit it repeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx.node import Node

from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import family, info
from graphopt.ir.quantizers import is_quantizer, quantizers


@dataclass(eq=False)
class Unit:
    """A layer, operator, input or constant, and its quantizers.

    Attributes:
        name: how users know it: the module's path, with the operator where that is no layer.
        operator: its family (`conv`, `linear`, `add`, ...), or `input`, `constant`.
        node: the call, input or constant.
        end: its result: the quantizer behind it where it has one.
        path: the calls from the first that its quantizers change to `end`; empty for a float layer.
        quantizers: all that are its own.
        weight, value: the quantizers of its weight and of the value it produces.
    """

    name: str
    operator: str
    node: Node
    end: Node
    path: tuple[Node, ...] = ()
    quantizers: set[Node] = field(default_factory=set)
    weight: Node | None = None
    value: Node | None = None

    @property
    def is_float(self) -> bool:
        return not self.quantizers


def units(graph: Graph) -> list[Unit]:
    """All units, in the order in which their results are complete."""
    found: dict[Node, Unit] = {}
    constant: set[Node] = set()
    for node in graph.calls():
        if (layer := Layer.of(node)) is not None:
            history = constants(graph, layer)
            constant.update(history)
            found[node] = _of_layer(graph, layer, set(filter(is_quantizer, history)))
    owner: dict[Node, Unit] = {}
    others: list[Unit] = []
    for quantizer in quantizers(graph):
        if quantizer in constant:
            continue
        unit = _repeated(quantizer, owner)
        if unit is None:
            source, chain = _behind(quantizer)
            unit = found.get(source)
            if unit is not None and unit.quantizers and unit.value is None:
                unit.end, unit.path = quantizer, (source, *chain)
            else:
                unit = _of_value(graph, chain[0] if is_quantizer(source) else source, quantizer)
                others.append(unit)
            unit.value = quantizer
        owner[quantizer] = unit
        unit.quantizers.add(quantizer)
    position = {node: number for number, node in enumerate(graph.nodes)}
    ordered = sorted([*found.values(), *others], key=lambda unit: position[unit.end])
    _make_unique(ordered)
    return ordered


def constants(graph: Graph, layer: Layer) -> list[Node]:
    """The calls that compute a layer's weight and bias from constants alone, in execution order."""
    found: list[Node] = []
    for source in (layer.weight, layer.bias):
        history = _history(source) if isinstance(source, Node) else None
        found += [node for node in history or [] if node not in found]
    return found


def _history(node: Node) -> list[Node] | None:
    """The calls behind a value that no input reaches; None where one does."""
    if node.op == "get_attr":
        return []
    if node.op != "call_function":
        return None
    found: list[Node] = []
    for source in node.all_input_nodes:
        before = _history(source)
        if before is None:
            return None
        found += [n for n in before if n not in found]
    return [*found, node]


def _of_layer(graph: Graph, layer: Layer, quantizers: set[Node]) -> Unit:
    node = layer.node
    weight = layer.weight if layer.weight in quantizers else None
    path = (node,) if quantizers else ()
    return Unit(graph.site(node), layer.kind, node, node, path, quantizers, weight)


def _of_value(graph: Graph, node: Node, quantizer: Node) -> Unit:
    if node.op == "placeholder":
        name, operator = dict(zip(graph.inputs, graph.input_names, strict=True)).get(node, node.name), "input"
    elif node.op == "get_attr":
        name, operator = str(node.target), "constant"
    else:
        operator = family(node) or str(getattr(node.target, "__name__", node.target)).split(".")[0]
        site = graph.site(node)
        ending = "output" if Layer.of(node) else operator
        name = ending if site == node.name else f"{site} {ending}"
    return Unit(name, operator, node, quantizer, (quantizer,))


def _behind(quantizer: Node) -> tuple[Node, list[Node]]:
    """The call whose result is quantized, in front of fused activations, and the calls from there to the quantizer."""
    chain = [quantizer]
    while info(source := operand(chain[0])).fusable:
        chain.insert(0, source)
    return source, chain


def _repeated(quantizer: Node, owner: dict[Node, Unit]) -> Unit | None:
    """The unit whose grid this quantizer repeats behind nothing but moves."""
    source = operand(quantizer)
    while info(source).selects:
        source = operand(source)
    if source in owner and source.args[1:] == quantizer.args[1:]:
        return owner[source]
    return None


def _make_unique(found: list[Unit]) -> None:
    taken: set[str] = set()
    for unit in found:
        if unit.name in taken:
            unit.name = f"{unit.name} ({unit.node.name})"
        taken.add(unit.name)

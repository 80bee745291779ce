"""A simulated graph and its float reference: the network as it was before anything was rounded.

The float reference is the same graph with its quantizers bypassed (`quantizer(x)` gives x) and with every constant that a pass
has changed to make up for rounding (codes chosen on data, corrected biases) as it was before. Those are facts of the constants
(`graphopt.ir.facts.FLOAT_REFERENCE`), copied and saved with the graph.

`PartialQuantization` gives what runs either, and anything between: any set of quantizers may be active.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.execution.observers import first_non_finite
from graphopt.ir.calls import operand
from graphopt.ir.facts import FLOAT_REFERENCE, REFERENCE_LEFT_OUT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantized_units import constants
from graphopt.ir.quantizers import is_quantizer, quantizers
from graphopt.utils.errors import NonFiniteError

NONE: frozenset[Node] = frozenset()


class PartialQuantization:
    """Runs a graph with some of its quantizers active.

    A constant that was changed to make up for rounding is so where the quantizer it makes up for is active: its own, or that of
    the layer's weight where it has none. Calls on a layer's constants are computed once, in float and rounded.

    Attributes:
        all: every quantizer.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.all = frozenset(quantizers(graph))
        self._rounder: dict[
            Node, Node | None
        ] = {}  # layers' constants and calls on them -> the quantizer that is theirs
        calls: list[Node] = []
        for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
            calls += (found := constants(graph, layer))
            outer = layer.weight if is_quantizer(layer.weight) else None
            for source in (layer.weight, layer.bias):
                if source is not None and (graph.is_constant(source) or source in found):
                    self._assign(source, _quantizer_behind(source) or outer)
        self._executors: dict[frozenset[Node], Executor] = {}
        self._float, self._rounded = (self._made(active, {}).run(calls, {}) for active in (NONE, self.all))

    def executor(self, active: Collection[Node]) -> Executor:
        """What runs the graph with these quantizers active, the others bypassed."""
        key = frozenset(active)
        if key not in self._executors:
            folded = {n: self._rounded[n] if self._rounder[n] in key else value for n, value in self._float.items()}
            self._executors[key] = self._made(key, folded)
        return self._executors[key]

    def blame(self, batch: list[Tensor]) -> NonFiniteError:
        """The error for a batch that is not finite in the float reference, naming the first call that gives NaN or infinity."""
        return NonFiniteError(first_non_finite(self.executor(NONE), batch))

    def _made(self, active: frozenset[Node], folded: dict[Node, Any]) -> Executor:
        compensated = {
            node: (self._rounder[node] in active) if node in self._rounder else active == self.all
            for node in self.graph.nodes
            if node.op == "get_attr"
        }
        floats = {node: reference_of(self.graph, node) for node, changed in compensated.items() if not changed}
        return Executor(self.graph, constants=floats | folded, overrides=dict.fromkeys(self.all - active, _bypass))

    def _assign(self, source: Node, rounder: Node | None) -> None:
        """Note whose rounding a value and the constants behind it belong to."""
        rounder = source if is_quantizer(source) else rounder
        self._rounder.setdefault(source, rounder)
        for behind in source.all_input_nodes:
            self._assign(behind, rounder)


def _bypass(value: Any, *arguments: Any, **options: Any) -> Any:
    return value


def _quantizer_behind(source: Node) -> Node | None:
    """The last quantizer among the calls that compute a value."""
    if is_quantizer(source):
        return source
    return next((found for behind in source.all_input_nodes if (found := _quantizer_behind(behind))), None)


def float_reference(graph: Graph) -> Graph:
    """The network before it was quantized: a copy that goes past every quantizer, weights and values alike.

    It shares the tensors that are the same in both.
    """
    reference = graph.clone(share_weights=True).eval()
    for node in reference.nodes:
        if (value := reference.fact(node, FLOAT_REFERENCE)) is not None:
            reference.put_constant(node, value)
    for node in quantizers(reference):
        reference.replace(node, node.args[0])  # type: ignore[arg-type]
    reference.sweep()  # shapes stay what they are
    reference.module.recompile()
    return reference


def reference_of(graph: Graph, constant: Node) -> Tensor:
    """A constant as the float reference has it."""
    value = graph.fact(constant, FLOAT_REFERENCE)
    return graph.tensor(constant) if value is None else value


def is_reference_left_out(graph: Graph) -> bool:
    """Whether the graph comes from a file that was written without the constants of its float reference."""
    return any(graph.fact(node, REFERENCE_LEFT_OUT) for node in graph.nodes)


def set_compensated(graph: Graph, reader: Node, position: int, value: Tensor) -> None:
    """Let an argument be another constant that makes up for rounding; the float reference keeps what it was at first."""
    constant: Node = reader.args[position]  # type: ignore[assignment]
    if graph.fact(constant, FLOAT_REFERENCE) is None and not graph.fact(constant, REFERENCE_LEFT_OUT):
        graph.set_fact(constant, FLOAT_REFERENCE, graph.tensor(constant).clone())
    graph.set_constant(reader, position, value, keeps=[FLOAT_REFERENCE, REFERENCE_LEFT_OUT])


def unquantized(value: Node) -> Node:
    """What a value is in front of its quantizers."""
    while is_quantizer(value):
        value = operand(value)
    return value

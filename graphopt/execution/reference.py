"""A simulated graph and its float twin, run side by side.

The twin is the same graph with its quantizers bypassed: `quantizer(x)` gives x, or where a pass has put other numbers in the
place of a weight or a bias (codes chosen on data), what was there before. Any set of quantizers may be active, and a run may
begin in the middle (`graphopt.execution.resumable`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.execution.observers import blame
from graphopt.execution.resumable import Flight
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import operand
from graphopt.ir.quantized_units import constants
from graphopt.ir.quantizers import is_quantizer, quantizers
from graphopt.utils.errors import NonFiniteError

NONE: frozenset[Node] = frozenset()
EXACT = "exact"  # in the meta of a quantizer: the constant it rounded at first; it is not saved with the graph


class Twins(Flight[Collection[Node]]):
    """Runs a graph with some of its quantizers active; its positions count the calls that depend on inputs.

    Attributes:
        all: every quantizer.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.all = frozenset(quantizers(graph))
        self._rounder: dict[Node, Node | None] = {}  # calls on layers' constants -> the quantizer among them
        self._float: dict[Node, Any] = {}
        self._rounded: dict[Node, Any] = {}
        for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
            for node in constants(graph, layer):
                self._fold(node)
        super().__init__(graph, [node for node in graph.calls() if node not in self._rounder])

    def call(self, node: Node, values: Mapping[Node, Any], how: Collection[Node]) -> Any:
        """What a call gives for the values in flight; `how`: the active quantizers."""

        def read(source: Node) -> Any:
            if source.op == "get_attr":
                return self.graph.tensor(source)
            if source in self._rounder:
                return (self._rounded if self._rounder[source] in how else self._float)[source]
            return values[source]

        if is_quantizer(node) and node not in how:
            return node.meta[EXACT] if EXACT in node.meta else read(node.args[0])  # type: ignore[arg-type]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def blame(self, batch: list[Tensor]) -> NonFiniteError:
        """The error for a batch that is not finite in the float twin, naming the first call that gives NaN or infinity."""
        values = self.start(batch)
        for position, node in enumerate(self.nodes):
            found = values[node] = self.call(node, values, NONE)
            for leaf in pytree.tree_leaves(found):
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                    return NonFiniteError(blame(self.graph, node, leaf))
            self.drop(position, values)
        return NonFiniteError("a value is not finite on the calibration data")

    def _fold(self, node: Node) -> None:
        """Compute a call on constants once, in float and rounded."""
        inner = [self._rounder[n] for n in node.all_input_nodes if n in self._rounder]
        with torch.no_grad():
            self._float[node] = self.call(node, {}, NONE)
            self._rounded[node] = self.call(node, {}, self.all)
        own = node if is_quantizer(node) else None
        self._rounder[node] = own or next((n for n in inner if n is not None), None)


def float_twin(graph: Graph) -> Graph:
    """The network before it was quantized: a copy that goes past every quantizer, weights and values alike."""
    twin = graph.clone().eval()
    for node in quantizers(twin):
        source = operand(node)
        if EXACT in node.meta:
            source = twin.add_constant(f"{source.target}_exact", node.meta[EXACT], before=node)
        twin.replace(node, source)
    twin.refresh()
    return twin


def keep_exact(graph: Graph, quantizer: Node) -> None:
    """Remember what a constant's quantizer rounds now, before a pass changes that for the first time."""
    source: Any = quantizer.args[0]
    if is_quantizer(quantizer) and graph.is_constant(source):
        quantizer.meta.setdefault(EXACT, graph.tensor(source).clone())


def unquantized(value: Node) -> Node:
    """What a value is in front of its quantizers."""
    while is_quantizer(value):
        value = operand(value)
    return value

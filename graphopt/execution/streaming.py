"""Walk a graph once over many batches, stopping wherever one likes: the values in flight are kept, everything else is dropped.

    walk = Frontier(graph, batches)
    for layer in layers:
        inputs = walk.before(layer.node, [layer.input])     # one list of values per batch
        ...                                                 # the layer's weight may be changed here

Calls that read constants only (a weight's quantizer) are computed where they are used, so that a weight may be changed until its
layer is. A walk over L layers costs one run of the graph, where running up to each layer anew would cost L / 2. Memory is what
is in flight where the walk stops, for all batches; `in_flight` says how much that is before it is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.ops import value


class Frontier:
    """A walk through a graph in execution order. Constants are read when they are used, so they may change on the way.

    Args:
        keep: what every tensor that stays in flight at a stop is put through (see `graphopt.execution.spill`).
    """

    def __init__(
        self, graph: Graph, batches: Iterable[list[Tensor]], keep: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.graph = graph
        self._keep, self._kept = keep, set[Node]()
        self._fixed = constant_calls(graph)
        self._nodes = [node for node in graph.nodes if node.op == "call_function" and node not in self._fixed]
        self._last = _last_uses(self._nodes)
        self._values: list[dict[Node, Any]] = [dict(zip(graph.placeholders, batch, strict=True)) for batch in batches]
        self._position = 0

    def before(self, node: Node, wanted: Sequence[Node]) -> list[list[Any]]:
        """Walk up to `node`, which is not computed yet; of each batch the values of `wanted`, which must be in flight there."""
        return self._advance(self._nodes.index(node), wanted)

    def results(self, node: Node) -> Iterator[Any]:
        """Walk up to `node`; of each batch what it gives, computed as it is asked for and not kept."""
        self._advance(self._nodes.index(node), [])
        for values in self._values:
            with torch.no_grad():
                result = self._call(node, values)
            yield result

    def _advance(self, end: int, wanted: Sequence[Node]) -> list[list[Any]]:
        found = []
        with torch.no_grad():
            for values in self._values:
                for position in range(self._position, end):
                    self._compute(values, position, wanted)
                found.append([values[node] for node in wanted])
                for node in [n for n in values if self._last.get(n, -1) < end]:
                    del values[node]
                if self._keep is not None:
                    for node, kept in values.items():
                        if node not in self._kept and isinstance(kept, Tensor) and node.op == "call_function":
                            values[node] = self._keep(kept)
        self._position = max(self._position, end)
        self._kept = {node for values in self._values[:1] for node in values}
        return found

    def _compute(self, values: dict[Node, Any], position: int, wanted: Sequence[Node]) -> None:
        node = self._nodes[position]
        values[node] = self._call(node, values)
        for source in node.all_input_nodes:
            if self._last.get(source) == position and source not in wanted:
                values.pop(source, None)

    def _call(self, node: Node, values: dict[Node, Any]) -> Any:
        def read(source: Node) -> Any:
            if source in self._fixed:
                return self._call(source, values)
            return self.graph.tensor(source) if source.op == "get_attr" else values[source]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def constant_calls(graph: Graph) -> set[Node]:
    """The calls that no input of the graph leads to."""
    found: set[Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and all(s.op == "get_attr" or s in found for s in sources):
            found.add(node)
    return found


def in_flight(graph: Graph, node: Node) -> int:
    """Bytes per sample of what is in flight just before `node` is computed."""
    fixed = constant_calls(graph)
    nodes = [n for n in graph.nodes if n.op == "call_function" and n not in fixed]
    last, position = _last_uses(nodes), nodes.index(node)
    alive = [n for n in [*graph.placeholders, *nodes[:position]] if last.get(n, -1) >= position]
    return sum(map(_bytes, alive))


def _last_uses(nodes: list[Node]) -> dict[Node, int]:
    """The position of each value's last reader; values the model returns are not kept for it."""
    return {
        source: position
        for position, node in enumerate(nodes)
        for source in node.all_input_nodes
        if source.op != "get_attr"
    }


def _bytes(node: Node) -> int:
    found = value(node)
    if not isinstance(found, Tensor):
        return 0
    return math.prod(cost.length(node, dim) for dim in range(found.dim())) * found.element_size()

"""Run a graph over many batches up to a call, then on to a later one: between two stops only the values in flight are kept.

    walk = Frontier(graph, batches)
    for layer in layers:
        inputs = walk.before(layer.node, [layer.input])     # one list of values per batch
        ...                                                 # the layer's weight may be changed here

Calls that read constants only (a weight's quantizer) are computed where they are used, so that a weight may be changed until its
layer is. A walk over L layers costs one run of the graph, where running up to each layer anew would cost L / 2. Memory is what
is in flight where the walk stops, for all batches; with `keep` (see `graphopt.execution.spill`) some of it goes to files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph


class Frontier:
    """A walk through a graph in execution order. Constants are read when they are used, so they may change on the way.

    Args:
        keep: what every tensor that stays in flight at a stop is put through (see `graphopt.execution.spill`).
    """

    def __init__(
        self, graph: Graph, batches: Iterable[list[Tensor]], keep: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._executor = Executor(graph)
        self._keep = keep
        self._values = [self._executor.inputs(batch) for batch in batches]
        self._kept: set[Node] = set()
        self._at: Node | None = None

    def before(self, node: Node, wanted: Sequence[Node]) -> list[list[Any]]:
        """Walk up to `node`, which is not computed yet; of each batch the values of `wanted`, which must be in flight there, or
        constants."""
        self._at = node if self._at is None else max(self._at, node)
        executor, found = self._executor.settled(), list[list[Any]]()
        alive = self._executor.alive(self._at)
        for values in self._values:
            for _ in executor.walk(values, wanted, keep=alive):
                pass
            found.append([executor.read(source, values) for source in wanted])
            if self._keep is not None:
                for source in alive:
                    if source.op == "call_function" and source not in self._kept and isinstance(values[source], Tensor):
                        values[source] = self._keep(values[source])
        self._kept = set(alive)
        return found

    def give(self, node: Node, results: Sequence[Any]) -> None:
        """What a later call gives, one value for each batch, which the walk then does not compute; kept as `keep` returned it."""
        for values, result in zip(self._values, results, strict=True):
            values[node] = result
        self._kept.add(node)

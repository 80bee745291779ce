"""A float network, run with some layers' weights exchanged and some values rounded, from the first call that changes.

What one layer does to the output costs the rest of the network and no more: the walk through the float network stands in front of
each layer once, and every choice for that layer is finished from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from graphopt.execution.resumable import Flight
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, WEIGHT


class Weights(NamedTuple):
    """What a layer computes with in place of its own; no bias: it keeps the one it has."""

    weight: Tensor
    bias: Tensor | None


class Trial(NamedTuple):
    """What is different: weights by layer, and what becomes of values by the call that gives them."""

    weights: Mapping[Node, Weights]
    values: Mapping[Node, Callable[[Tensor], Tensor]]

    @classmethod
    def of(cls, parts: Iterator[Trial]) -> Trial:
        """All of them at once."""
        weights: dict[Node, Weights] = {}
        values: dict[Node, Callable[[Tensor], Tensor]] = {}
        for part in parts:
            weights.update(part.weights)
            values.update(part.values)
        return cls(weights, values)


NOTHING = Trial({}, {})


class Network(Flight[Trial]):
    """Runs a float graph, whole or from a position on; positions count its calls."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, graph.calls())

    def walk(self, batch: list[Tensor]) -> Iterator[tuple[int, dict[Node, Any]]]:
        """The values in flight in front of every call, in execution order; to be read until the next is asked for."""
        values = self.start(batch)
        for position, node in enumerate(self.nodes):
            yield position, values
            values[node] = self.call(node, values, NOTHING)
            self.drop(position, values)

    def outputs(self, batch: list[Tensor], trial: Trial = NOTHING) -> list[Tensor]:
        """Run everything."""
        return self.finish(self.start(batch), 0, trial)

    def first(self, trial: Trial) -> int:
        """The position of the first call that a trial changes."""
        return min(self.position[node] for node in (*trial.weights, *trial.values))

    def call(self, node: Node, values: Mapping[Node, Any], how: Trial) -> Any:
        """What a call gives for the values in flight; `how`: what is different."""

        def read(source: Node) -> Any:
            return self.graph.tensor(source) if source.op == "get_attr" else values[source]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        if (own := how.weights.get(node)) is not None:
            bias = args[BIAS : BIAS + 1] if own.bias is None else (own.bias,)
            args = (*args[:WEIGHT], own.weight, *bias, *args[BIAS + 1 :])
        with torch.no_grad():
            found = node.target(*args, **kwargs)  # type: ignore[operator]
        change = how.values.get(node)
        return found if change is None else change(found)

"""A float network, run with some layers' weights exchanged and some values rounded, from the first call that changes.

What one layer does to the output costs the rest of the network and no more: the walk through the float network stands in front of
each layer once, and every choice for that layer is finished from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import Executor
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

    @property
    def first(self) -> Node:
        """The first call that it changes."""
        return min((*self.weights, *self.values))

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


class Network:
    """Runs a float graph, and the graph under a trial."""

    def __init__(self, graph: Graph) -> None:
        self.executor = Executor(graph)

    def outputs(
        self, given: list[Tensor] | Mapping[Node, Any], trial: Trial = NOTHING, start: Node | None = None
    ) -> list[Tensor]:
        """The floating-point outputs for a batch, or from the values in flight in front of `start`."""
        changed = {node: partial(_changed, node, trial) for node in (*trial.weights, *trial.values)}
        return self.executor.overriding(changed).float_outputs(given, start=start)


def _changed(node: Node, trial: Trial, *args: Any, **kwargs: Any) -> Any:
    """A call in which something is different."""
    if (own := trial.weights.get(node)) is not None:
        bias = args[BIAS : BIAS + 1] if own.bias is None else (own.bias,)
        args = (*args[:WEIGHT], own.weight, *bias, *args[BIAS + 1 :])
    found = node.target(*args, **kwargs)  # type: ignore[operator]
    change = trial.values.get(node)
    return found if change is None else change(found)

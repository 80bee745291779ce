"""The values in flight while a graph runs call by call: what is there in front of each call, and until when it is needed.

A run may begin in the middle, with the values in flight there, so that what one call does to the network's output costs the rest
of the network and no more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.graph import Graph

How = TypeVar("How")


class Flight(ABC, Generic[How]):
    """Runs a graph from any position on; subclasses say what a call gives, in a way `How` that a run is asked for.

    Attributes:
        nodes: the calls that are run, in execution order; positions count these.
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node]) -> None:
        self.graph, self.nodes = graph, list(nodes)
        self.position = {node: number for number, node in enumerate(self.nodes)}
        self._expiring: list[list[Node]] = [[] for _ in self.nodes]
        for node in [*graph.placeholders, *self.nodes]:
            uses = [self.position.get(user, len(self.nodes)) for user in node.users]
            last = max(uses, default=self.position.get(node, 0))
            if last < len(self.nodes):
                self._expiring[last].append(node)

    @abstractmethod
    def call(self, node: Node, values: Mapping[Node, Any], how: How) -> Any:
        """What a call gives for the values in flight."""

    def start(self, batch: list[Tensor]) -> dict[Node, Any]:
        """The values in flight in front of the first call. (Inputs that are no tensors are built in.)"""
        return {**dict.fromkeys(self.graph.placeholders), **dict(zip(self.graph.inputs, batch, strict=True))}

    def drop(self, position: int, values: dict[Node, Any]) -> None:
        """Let go of what the call at this position was the last to read."""
        for node in self._expiring[position]:
            values.pop(node, None)

    def finish(self, values: Mapping[Node, Any], position: int, how: How) -> list[Tensor]:
        """Run from a position to the end: the floating-point outputs. `values`, what is in flight there, stays as it is."""
        values = dict(values)
        for number in range(position, len(self.nodes)):
            values[self.nodes[number]] = self.call(self.nodes[number], values, how)
            self.drop(number, values)
        found = [self.graph.tensor(n) if n.op == "get_attr" else values[n] for n in self.graph.outputs]
        return [z for z in pytree.tree_leaves(found) if isinstance(z, Tensor) and z.is_floating_point()]

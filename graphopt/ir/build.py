"""Calls put in front of a node one after another, as passes do that put a small network in the place of one call.

build = Build(graph, at, {"weight": constant})
rows = build.call(aten.linear.default, x, "weight")          "weight": the constant of that name
half = build.number(operator.floordiv, build.size(x, 1), 2)  a number, or a call where the size is free
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx.node import Node

from graphopt.ir.calls import shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten

Number = int | Node


class Build:
    """Emits calls in front of a node.

    Attributes:
        calls: what was emitted, in order.
    """

    def __init__(self, graph: Graph, at: Node, constants: Mapping[str, Node]) -> None:
        self.graph, self.at, self.constants = graph, at, constants
        self.calls: list[Node] = []

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call whose arguments may be names of constants."""
        self.calls.append(self.graph.call(target, *map(self._known, args), before=self.at, **kwargs))
        return self.calls[-1]

    def size(self, node: Node, dim: int) -> Number:
        """Of a dimension of a value whose shape is known: a number, or the call that asks for it where it is free."""
        known = shape(node)[dim]
        return known if isinstance(known, int) else self.call(aten.sym_size.int, node, dim % len(shape(node)))

    def number(self, function: Callable[[Any, Any], Any], one: Number, other: Number) -> Number:
        """A function of two sizes, such as `operator.add`: a number where both are, else a call."""
        known = isinstance(one, int) and isinstance(other, int)
        return function(one, other) if known else self.call(function, one, other)

    def _known(self, argument: Any) -> Any:
        return self.constants.get(argument, argument) if isinstance(argument, str) else argument

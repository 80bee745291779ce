"""Whether a value is computed, by the options that are chosen.

A call is computed where one of its readers is, and a `choose` reads the option that is chosen. Where every option of a choice
needs a value, as all kernel sizes need the input, it is computed whenever the choice is: then that choice decides nothing.

    needed(call)    = the call and what its arguments need        needed(choose) = it, and what all of its options need
    v is computed where u is:   u is behind v on every way to the output, and v is in needed(u)
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.executor import constant_calls
from graphopt.ir.graph import Graph

Weights = Sequence[Tensor]


class Computed:
    """Of a graph with choices, in which cases each value is computed.

    Args:
        chosen_by: of every `choose`, the number of its choice.
    """

    def __init__(self, graph: Graph, chosen_by: dict[Node, int]) -> None:
        self.graph, self.chosen_by = graph, chosen_by
        self.constant = constant_calls(graph.nodes)
        self.as_behind = self._as_behind()
        self._scopes: dict[Node, frozenset[int]] = {}
        for node in reversed(list(graph.nodes)):
            self._scopes[node] = self._scope(node)

    def scope(self, node: Node) -> frozenset[int]:
        """The choices that decide whether a value is computed; none: it always is."""
        return self._scopes[node]

    def __call__(self, node: Node, weights: Weights) -> Tensor:
        """In which share of the cases a value is computed: 0 or 1 where the weights of choices are one-hot."""
        return self._share(node, weights, {})

    def readers(self, node: Node) -> list[Node]:
        """What reads a value while the network runs: a constant that others are computed from is not read by that."""
        if node.op == "get_attr" or node in self.constant:
            return [user for user in node.users if user not in self.constant]
        return list(node.users)

    def _share(self, node: Node, weights: Weights, known: dict[Node, Tensor]) -> Tensor:
        if not self._scopes[node]:
            return torch.ones(())
        if node not in known:
            if (behind := self.as_behind.get(node)) is not None:
                known[node] = self._share(behind, weights, known)
            else:
                reads = [self._read(node, user, weights, known) for user in self.readers(node)]
                known[node] = torch.stack(reads).sum().clamp(max=1.0)  # options of one choice exclude each other
        return known[node]

    def _read(self, node: Node, user: Node, weights: Weights, known: dict[Node, Tensor]) -> Tensor:
        share = self._share(user, weights, known)
        if user not in self.chosen_by:
            return share
        options: Sequence[Node] = user.args[0]  # type: ignore[assignment]
        return share * (weights[self.chosen_by[user]] @ torch.tensor([float(option is node) for option in options]))

    def _scope(self, node: Node) -> frozenset[int]:
        if node.op == "output":
            return frozenset()
        if (behind := self.as_behind.get(node)) is not None:
            return self._scopes[behind]
        found, always = frozenset[int](), False
        for user in self.readers(node):
            own = frozenset([self.chosen_by[user]]) if user in self.chosen_by else frozenset()
            always |= not (self._scopes[user] | own)
            found |= self._scopes[user] | own
        return frozenset() if always else found

    def _as_behind(self) -> dict[Node, Node]:
        """Of values that are computed exactly where some value behind them is, the nearest such value."""
        order = {node: number for number, node in enumerate(self.graph.nodes)}
        needed = dict[Node, int]()  # as bits
        for node, number in order.items():
            needed[node] = self._needed(node, needed) | 1 << number
        ways = nx.DiGraph((user, node) for node in order for user in self.readers(node))
        nearest = nx.immediate_dominators(ways, self.graph.output) if self.graph.output in ways else {}
        found = {}
        for node, number in order.items():
            behind = nearest.get(node)
            while behind is not None and behind is not node:
                if needed[behind] >> number & 1:
                    found[node] = behind
                    break
                node_behind = nearest.get(behind)
                behind = None if node_behind is behind else node_behind
        return found

    def _needed(self, node: Node, needed: dict[Node, int]) -> int:
        total = 0
        for source in node.all_input_nodes if node not in self.constant else ():
            total |= needed[source]
        if node in self.chosen_by:
            options: Sequence[Node] = node.args[0]  # type: ignore[assignment]
            total = needed[options[0]]
            for option in options[1:]:
                total &= needed[option]
        return total

"""What a search among the networks of a supernet found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.ir.graph import Graph
from graphopt.searching import Assignment
from graphopt.utils import fronts


@dataclass(frozen=True)
class Tried:
    """One sub-network: its options, what it scored (None: not evaluated), and what it costs."""

    options: Assignment
    score: float | None
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """The best within the budget.

    Attributes:
        options: of each choice of the supernet, in the order of `graphopt.ir.choices.choices`.
        labels: the same as choice -> option, in words.
        graph: the network, an ordinary graph with weights of its own and statistics of its own in its batch norms.
        score: with the shared weights, or those fitted to the largest network; None where no network was evaluated.
        costs: `macs` and `parameters`, and `ms` where times were measured.
        tried: every network that was evaluated, the found one among them.
    """

    options: Assignment
    labels: Mapping[str, str]
    graph: Graph
    score: float | None
    costs: Mapping[str, float]
    tried: Sequence[Tried]

    def front(self, cost: str = "macs") -> list[Tried]:
        """Those that no other one betters in both score and cost, the cheapest first."""
        scored = [t for t in self.tried if t.score is not None]
        return fronts.front(scored, lambda t: t.costs[cost], lambda t: t.score or 0.0)

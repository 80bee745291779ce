"""Choices of ranks: every layer as it is, or as one of a few chains of smaller ones. An option's value is the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.evaluation.resized import Alone, whole
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.passes.factorization import Factorize
from graphopt.passes.factorization.candidates import TIMED_SHARES, Candidate, alone, choices
from graphopt.passes.factorization.candidates import Choice as Weighed
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.damage import weigh
from graphopt.passes.factorization.site import sites
from graphopt.searching import Assignment, Choice, Option
from graphopt.utils import fronts

MOST = 4  # chains of a layer
WORST = 0.3  # damage: with such a chain there is not much of a network left


@dataclass(frozen=True)
class Ranks:
    """The layers that may become chains: a choice for each, and what it was made from."""

    choices: list[Choice]
    weighed: list[Weighed]

    @classmethod
    def of(cls, graph: Graph, data: Iterable[list[Tensor]] | None, round_to: int) -> Ranks:
        """With the damage measured on data; without data all layers stay."""
        if data is None:
            return cls([], [])
        methods = Factorize(target_macs=0.5).methods
        found = choices(graph, list(sites(graph)), methods, {}, round_to, TIMED_SHARES)
        weigh(graph, found, data)
        made, kept = [], []
        for choice in found:
            best = _front(choice.candidates)
            if best:
                options = [Option(f"{type(c.method).__name__} {c.ranks}", c.damage, c) for c in best]
                made.append(Choice(choice.site.name, "rank", (Option("whole", 0.0), *options)))
                kept.append(choice)
        return cls(made, kept)

    def calls(self, number: int) -> list[Node]:
        """The layers of a choice: several where they share a weight."""
        return [layer.node for layer in self.weighed[number].site.layers]

    def candidate(self, number: int, option: int) -> Candidate:
        found: Candidate = self.choices[number].options[option].value
        return found

    def fits(self, number: int, option: int, kept: Sequence[float]) -> bool:
        """Whether the ranks are those of a smaller layer, too, that keeps these shares of its channels."""
        candidate, layer = self.candidate(number, option), self.weighed[number].site.layer
        full = candidate.method.full(layer)
        return all(rank <= most * min([1.0, *kept]) for rank, most in zip(candidate.ranks, full, strict=True))

    def by_themselves(self, number: int) -> list[Alone]:
        """The layer as it is and every chain, for measuring their time."""
        layer = self.weighed[number].site.layer
        chains = [Chain.whole(layer), *(self.candidate(number, n).chain for n in self._options(number))]
        return [whole(alone(layer, chain)) for chain in chains]

    def _options(self, number: int) -> range:
        return range(1, len(self.choices[number].options))

    def passes(
        self, assignment: Assignment, data: Iterable[list[Tensor]] | None, checkpoint: str | Path | None
    ) -> list[Pass]:
        """What puts the chosen chains in place, fitted to data where there are any."""
        methods: dict[str, tuple[Any, dict[str, Any]]] = {}
        for number, option in enumerate(assignment):
            if option:
                candidate = self.candidate(number, option)
                kind = type(candidate.method)
                _, layers = methods.setdefault(kind.__name__, (kind, {}))
                layers[escape(self.choices[number].name)] = candidate.ranks
        return [
            kind(layers={**layers, "*": None}, data=data, checkpoint=checkpoint) for kind, layers in methods.values()
        ]


def _front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing with less work damages less than, from the least damage on; at most `MOST`."""
    good = [candidate for candidate in candidates if candidate.damage < WORST]
    front = fronts.front(good, lambda c: c.macs, lambda c: -c.damage)[::-1]
    if len(front) > MOST:
        front = [front[round(i * (len(front) - 1) / (MOST - 1))] for i in range(MOST)]
    return front

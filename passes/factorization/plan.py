"""What `Factorize` is going to do: per layer the method, ranks, error, work and time, or why it is left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from typing import TYPE_CHECKING, Any

from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.passes.factorization.allocate import Option, allocate
from graphopt.passes.factorization.candidates import (
    SHARES,
    TIMED_SHARES,
    Candidate,
    Choice,
    choices,
    made_up,
    time_candidates,
)
from graphopt.passes.factorization.damage import weigh
from graphopt.passes.factorization.site import check_named, put, sites
from graphopt.utils.errors import InputError
from graphopt.utils.pass_text import pass_text
from graphopt.utils.quantities import count
from graphopt.utils.tables import Column, Table, numbers, plain

if TYPE_CHECKING:
    from graphopt.passes.factorization.factorize import Factorize


WIDTH = 140  # of the plan as text


@dataclass(frozen=True)
class FactorizationPlan:
    """One `Choice` per layer; prints as a table.

    Attributes:
        total: what the whole network costs: multiply-accumulates, parameters, or milliseconds.
        by: which of them.
    """

    choices: Sequence[Choice]
    total: float
    by: str

    @classmethod
    def of(cls, options: Factorize, graph: Graph) -> FactorizationPlan:
        """All candidates, measured; nothing is chosen yet."""
        found = list(sites(graph))
        check_named(options.layers, found)
        shares = SHARES if options.timer is None else TIMED_SHARES
        weighed = choices(graph, found, options.methods, options.layers, options.round_to, shares)
        if options.timer is not None:
            time_candidates(weighed, options.timer)
        if not any(choice.candidates for choice in weighed):
            reasons = "; ".join(f"{choice.site.name}: {choice.why}" for choice in weighed[:3])
            raise InputError(f"no layer can be factorized: {reasons or 'there is none with a constant weight'}")
        weigh(graph, weighed, options.data)
        if options.max_latency is not None:
            assert options.timer is not None
            return cls(weighed, options.timer([graph])[0], "ms")
        if options.target_parameters is not None:
            return cls(weighed, cost.parameters(graph), "parameters")
        return cls(weighed, cost.macs(graph), "macs")

    def choose(self, keep: float, *, strict: bool = True) -> None:
        """Let every layer take the candidate with which the whole keeps this share of its cost, at the least damage.

        Raises:
            InputError: the candidates cannot save as much, and `strict` does not allow for less.
        """
        wanted = (1 - keep) * self.total
        wanted -= sum(getattr(c, self.by) - getattr(c.candidates[0], self.by) for c in self.choices if c.fixed)
        usable = [[] if c.fixed else [x for x in c.candidates if self._saved(c, x) > 0] for c in self.choices]
        options = [
            [Option(self._saved(choice, x), x.damage) for x in each]
            for choice, each in zip(self.choices, usable, strict=True)
        ]
        most = sum(max((o.saved for o in each), default=0.0) for each in options)
        if strict and most < wanted:
            raise InputError(
                f"only {most / self.total:.0%} of the {_WORDS[self.by]} can be saved by factors, "
                f"{wanted / self.total:.0%} were asked for; keep more, or allow more methods, ranks or layers"
            )
        picked = allocate(options, min(wanted, most))
        self.take(
            [
                choice.candidates[0] if choice.fixed else None if index is None else each[index]
                for choice, each, index in zip(self.choices, usable, picked, strict=True)
            ]
        )

    def _saved(self, choice: Choice, candidate: Candidate) -> float:
        return float(getattr(choice, self.by) - getattr(candidate, self.by))

    @property
    def chosen(self) -> list[Candidate | None]:
        """What every layer takes; None where it stays."""
        return [choice.chosen for choice in self.choices]

    def take(self, chosen: Sequence[Candidate | None]) -> None:
        """Set what every layer takes."""
        for choice, candidate in zip(self.choices, chosen, strict=True):
            choice.chosen = candidate
            if candidate is None and choice.candidates:
                choice.why = "another layer saves as much with less damage"

    @property
    def text(self) -> str:
        """The passes that do this again without choosing anew: to edit, and to give to `passes=` or `--passes`.

        Factors are found again, from the weights or from data.
        """
        layers: dict[str, dict[str, Any]] = {}
        how: dict[str, dict[str, Any]] = {}
        for choice in self.choices:
            if (found := choice.chosen) is not None:
                name = type(found.method).__name__
                layers.setdefault(name, {})[escape(choice.site.name)] = found.ranks
                how[name] = {
                    option: value
                    for option in ("nonlinear", "refine_steps", "terms", "modes")
                    if (value := getattr(found.method, option, None)) not in (None, False, 0)
                }
        return ", ".join(
            pass_text(name, {"layers": {**ranks, "*": None}, **how[name]}) for name, ranks in layers.items()
        )

    def mock(self, graph: Graph) -> Graph:
        """A copy of the graph with the chosen chains, whose numbers are made up: for measuring."""
        copy = graph.clone(share_weights=True)
        places = {site.name: site for site in sites(copy)}
        for choice in self.choices:
            if (found := choice.chosen) is not None:
                site = places[choice.site.name]
                chain = made_up(found.method.skeleton(site.layer, found.ranks))
                put(copy, site, [found.method.moved(layer, found.ranks, chain) for layer in site.layers])
        copy.refresh()
        return copy

    def __str__(self) -> str:
        return plain([self._table()], WIDTH)

    def _table(self) -> Table:
        timed = any(not math.isnan(choice.ms) for choice in self.choices)
        columns = [
            Column("layer"),
            Column("method"),
            Column("channels"),
            *numbers("error", "MACs", *(["ms"] if timed else [])),
        ]
        return Table(columns, [_row(choice, timed) for choice in self.choices])


_WORDS = {"macs": "multiply-accumulates", "parameters": "parameters", "ms": "time"}


def _row(choice: Choice, timed: bool) -> list[str]:
    found: Candidate | None = choice.chosen
    if found is None:
        return [
            choice.site.name,
            "-",
            f"left alone: {choice.why}",
            "",
            count(choice.macs),
            *([_ms(choice.ms)] if timed else []),
        ]
    work = f"{count(choice.macs)} -> {count(found.macs)}"
    time = [f"{_ms(choice.ms)} -> {_ms(found.ms)}"] if timed else []
    return [choice.site.name, type(found.method).__name__, str(found.chain), f"{found.error:.2g}", work, *time]


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"

"""What a search found: a network for each budget, what it costs and how well it answers, and which of them are worth having."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from graphopt.artifacts.artifact import Artifact
from graphopt.compiler.search.recipe import Recipe
from graphopt.utils import fronts, web
from graphopt.utils.charts import Point as Dot
from graphopt.utils.charts import scatter
from graphopt.utils.errors import InputError, alternatives
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table, numbers

COSTS = {"ms": "milliseconds", "bytes": "bytes of the artifact", "macs": "multiply-accumulates"}


@dataclass(frozen=True)
class Point:
    """A network for a budget.

    Attributes:
        budget: empty: the network as it is, quantized.
        recipe: what makes it. folder: of its artifact, which `artifact()` opens.
        damage: predicted, of the choices alone. costs: measured of the artifact: `ms`, `bytes`, `macs`.
        score: what `evaluate` said; None: there is none, or it failed.
        sqnr_db: its outputs against the float original's. told: what was sought, in words. error: of `evaluate`.
    """

    budget: Mapping[str, float]
    recipe: Recipe
    folder: str
    damage: float
    costs: Mapping[str, float]
    score: float | None = None
    sqnr_db: float | None = None
    told: str = ""
    error: str = ""

    def artifact(self) -> Artifact:
        """Opened, after verifying every file of it."""
        from graphopt.compiler.optimize import load

        return load(self.folder)

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.budget.items()) or "as it is"


@dataclass(frozen=True)
class SearchResults(Printed):
    """The points of a search.

    Attributes:
        points: in the order in which they were found; the first is the network as it is.
        refused: budgets that nothing meets, each with the reason, which names the least that is in reach.
        original_score: what `evaluate` said of the float original. noise: by how much two of its runs on that differed.
        notes: how well predicted times agree with measured ones, among others.
    """

    model: str
    points: Sequence[Point]
    refused: Sequence[tuple[Mapping[str, float], str]] = ()
    original_score: float | None = None
    noise: float = 0.0
    notes: Sequence[str] = field(default_factory=list)

    def front(self, cost: str | None = None) -> list[Point]:
        """The points that no other betters in this cost and in how well they answer, the cheapest first.

        Args:
            cost: `ms`, `bytes` or `macs`; None: the first of these that was measured of all.

        Raises:
            InputError: nothing was measured of that name.
        """
        name = self._cost(cost)
        return fronts.front(self._judged, lambda point: point.costs[name], self._quality, self.noise)

    @property
    def best(self) -> Point:
        """What answers best; of those that differ by no more than the noise of `evaluate` the cheapest."""
        most = max(map(self._quality, self._judged))
        near = [point for point in self._judged if self._quality(point) >= most - self.noise]
        return min(near, key=lambda point: point.costs[self._cost(None)])

    @property
    def _judged(self) -> list[Point]:
        """Those that can be compared: where there are scores, those that have one."""
        scored = [point for point in self.points if point.score is not None]
        return scored or list(self.points)

    @property
    def _scored(self) -> bool:
        return any(point.score is not None for point in self.points)

    def _quality(self, point: Point) -> float:
        found = point.score if self._scored else point.sqnr_db
        return -float("inf") if found is None else found

    def _cost(self, name: str | None) -> str:
        measured = [each for each in COSTS if all(each in point.costs for point in self.points)]
        if name is None:
            return measured[0]
        if name not in measured:
            raise InputError(f"no cost {name!r} was measured; {alternatives(name, measured, 'costs')}")
        return name

    # ---- Shown ------------------------------------------------------------------------------------------------------

    def blocks(self) -> list[Block]:
        front = [id(point) for point in self.front()]
        columns = [Column("budget"), *numbers(*COSTS, "score", "SQNR"), Column("")]
        rows = [
            [
                point.name,
                *(_figure(point.costs.get(name)) for name in COSTS),
                _figure(point.score),
                _figure(point.sqnr_db),
                point.error or ("*" if id(point) in front else ""),
            ]
            for point in self.points
        ]
        lines: list[Block] = [
            Line(f"{self.model}: {len(self.points)} networks; * no other is cheaper and better", "title")
        ]
        refused = [Line(f"{dict(budget)}: {reason}", "warning") for budget, reason in self.refused]
        return [*lines, Table(columns, rows), *(Line(f"note: {note}") for note in self.notes), *refused]

    def page(self) -> str:
        """One page of HTML: the front as a picture, and the table."""
        picture = web.panel("Front", [web.figure(self._picture(), "filled: no other is cheaper and better")])
        return web.page(f"{self.model}: networks for budgets", [picture, web.blocks(self.blocks())])

    def _picture(self) -> str:
        cost, front = self._cost(None), [id(point) for point in self.front()]
        dots = [
            Dot(point.name, point.costs[cost], self._quality(point), point.told, id(point) in front, number)
            for number, point in enumerate(self._judged)
        ]
        level = self.original_score if self._scored else None
        return scatter(dots, COSTS[cost], "score" if self._scored else "SQNR in dB", level, "float")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "refused": [{"budget": dict(b), "reason": reason} for b, reason in self.refused]}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

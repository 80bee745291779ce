"""A budget becomes passes: choices, what they cost, the best within the limits, and a look whether it holds.

1. Widths of all groups of channels, ranks of layers and residual blocks are choices, each with the damage it does to the output,
   measured alone.
2. What they cost is the sum of terms (`costs.py`); milliseconds are those of the network's parts, timed by themselves on the
   runtime, times what the whole takes for the sum of its parts.
3. A solver chooses (`graphopt.searching`).
4. A network of these choices with made-up weights is counted, and where time is limited lowered and timed in turn with the float
   original. Where it misses a limit, that of the prediction is moved by as much, and the choice is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from graphopt.compiler.budget.amounts import TIMED, limit
from graphopt.compiler.budget.spending import Spending, counts, weight_bytes
from graphopt.compiler.made_up import lowered, target_here
from graphopt.compiler.part_times import PartTimes
from graphopt.compiler.work import Work
from graphopt.ir import cost
from graphopt.ir.passes import Pass
from graphopt.searching import Assignment, Problem, solve

LOG = logging.getLogger(__name__)
ROUNDS = 5  # of choosing and measuring
UNDER = 0.95  # of a limit of time: what is faster than that is chosen again, with less damage
OVER = {"ms": 1.02, "macs": 1.0, "bytes": 1.0}  # times a limit: what it may be missed by
FLOAT_BYTES = 4


def spend(work: Work, budget: Mapping[str, float]) -> list[Pass]:
    """The passes that bring the network of a work into a budget; the report gets what was measured.

    Raises:
        InputError: the budget is out of reach, or the network has nothing to choose.
    """
    if {*TIMED} & {*budget}:
        target_here(work.target)  # before anything is measured
    spending = Spending.of(work)
    look = _Look(work, spending, budget)
    costs = spending.terms(work, budget)
    if look.clock:
        costs["ms"] = spending.costs.milliseconds(PartTimes(work.target, threads=work.options.measurement.threads))
    whole = Problem(spending.choices, costs, {})
    seen, wanted = look(whole.first)
    scale = {name: whole.cost(name, whole.first) / seen[name] for name in costs}
    aims = {name: wanted[name] * scale[name] for name in costs}
    best: tuple[float, Assignment] | None = None
    for _ in range(ROUNDS):
        problem = Problem(spending.choices, costs, aims)
        found = solve(problem)
        seen, wanted = look(found)
        LOG.info("%s of %s", seen, wanted)
        holds = all(seen[name] <= OVER[name] * wanted[name] for name in aims)
        if holds and (best is None or problem.damage(found) < best[0]):
            best, kept = (problem.damage(found), found), (seen, wanted)
        loose = "ms" in aims and seen["ms"] < UNDER * wanted["ms"]
        if holds and (not loose or found == whole.first):
            break
        aims = {n: aim * _moved(n, wanted[n] / seen[n], holds) for n, aim in aims.items()}
    if best is None:
        best, kept = (problem.damage(found), found), (seen, wanted)
        work.report.warnings.append(f"the budget is missed: {_told(*kept)}")
    work.report.notes.append(f"widths, ranks and blocks were chosen for a budget: {_told(*kept)}")
    return spending.passes(best[1])


def _moved(name: str, share: float, holds: bool) -> float:
    """What a limit of the prediction is multiplied by, where this share of what was seen is wanted."""
    if name == "ms":
        return share
    return 1.0 if holds or share >= 1 else 0.99 * share


def _told(seen: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    units = {"ms": "ms with made-up weights", "macs": "multiply-accumulates", "bytes": "bytes of weights"}
    return "; ".join(f"{seen[name]:.4g} of {wanted[name]:.4g} {units[name]}" for name in wanted)


class _Look:
    """What a choice costs, and what it may cost: (seen, wanted), by name."""

    def __init__(self, work: Work, spending: Spending, budget: Mapping[str, float]) -> None:
        self.work, self.spending, self.budget = work, spending, budget
        whole = {"macs": cost.macs(work.original), "bytes": FLOAT_BYTES * cost.parameters(work.original)}
        self.limits = {name: limit(budget[name], whole[name]) for name in whole if name in budget}
        self.clock = bool({*TIMED} & {*budget})
        if self.clock:
            self.original = work.floating(work.reference or work.target).artifact

    def __call__(self, assignment: Assignment) -> tuple[dict[str, float], dict[str, float]]:
        mock = self.spending.mock(assignment)
        counted = counts(mock, weight_bytes(self.work))
        seen = {name: counted[name] for name in self.limits}
        if not self.clock:
            return seen, self.limits
        float_ms, ms = self.work.milliseconds(self.original, lowered(mock, self.work.target))
        wanted = self.budget["ms"] if "ms" in self.budget else self.budget["latency"] * float_ms
        return seen | {"ms": ms}, self.limits | {"ms": wanted}

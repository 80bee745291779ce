"""Networks within budgets: what may be chosen, what it costs, and the best that keeps the limits where it is measured.

planner = Planner(work, {"latency", "bytes"})       measures damages, parts, and some whole networks, once
plan = planner({"latency": 0.4})                    as often as wanted
planner.spending.passes(plan.assignment)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from graphopt.compiler.budget.amounts import ENERGY, TIMED, limit
from graphopt.compiler.budget.clock import Clock
from graphopt.compiler.budget.correction import Correction, drawn
from graphopt.compiler.budget.energy import FLOAT, energy
from graphopt.compiler.budget.spending import Spending
from graphopt.compiler.made_up import lowered, target_here
from graphopt.compiler.part_times import PartTimes
from graphopt.compiler.work import Work
from graphopt.ir import cost
from graphopt.searching import Assignment, Problem, Term, solve
from graphopt.utils.errors import InputError
from graphopt.utils.progress import progress

LOG = logging.getLogger(__name__)
NETWORKS, SECONDS = 32, 90.0  # that are measured before anything is chosen, and when to stop early ...
FEWEST = 6  # ... but not before so many
ROUNDS = 6  # of choosing and measuring
CLOSER = 0.97  # times every limit, where the same network was chosen once more and still misses one
UNDER = 0.95  # of a limit of time: what is faster than that is chosen again, with less damage
OVER = {"ms": 1.02, "macs": 1.0, "bytes": 1.0, ENERGY: 1.0}  # times a limit: what it may be missed by
FLOAT_BYTES = 4
UNITS = {
    "ms": "ms with made-up weights",
    "macs": "multiply-accumulates",
    "bytes": "bytes of weights",
    ENERGY: "pJ by the target's table (a model, not a measurement)",
}


@dataclass(frozen=True)
class Plan:
    """A network for a budget.

    Attributes:
        assignment: the option of every choice. damage: predicted, the sum of what each does alone.
        seen, wanted: by name, what it costs and what it may cost. holds: whether it costs no more.
    """

    assignment: Assignment
    damage: float
    seen: Mapping[str, float]
    wanted: Mapping[str, float]
    holds: bool

    def __str__(self) -> str:
        return "; ".join(f"{self.seen[n]:.4g} of {self.wanted[n]:.4g} {UNITS[n]}" for n in self.wanted)


@dataclass
class Planner:
    """Plans networks of a work within budgets.

    Args:
        amounts: the names that budgets may have.
        seed: of the random networks that are timed.
        known: times of networks that were measured before, as shares of the float original's.
        on_seen: is told each that is measured now.

    Attributes:
        correction: of predicted times, where a budget may limit time.

    Raises:
        InputError: time is limited, and the target is of another architecture.
    """

    work: Work
    amounts: Collection[str]
    seed: int = 0
    known: Mapping[Assignment, float] = field(default_factory=dict)
    on_seen: Callable[[Assignment, float], None] = lambda assignment, share: None
    spending: Spending = field(init=False)
    correction: Correction | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        timed = bool({*TIMED} & {*self.amounts})
        if timed:
            target_here(self.work.target)  # before anything is measured
        self.spending = Spending.of(self.work, self.amounts)
        if not self.spending.choices:
            raise InputError(
                f"{self.work.report.model} has nothing to choose for a budget of {', '.join(sorted(self.amounts))}: no channels "
                "that may go, and no layer that data know to do with less"
            )
        self.counted = self.spending.terms(self.work, self.amounts)
        whole: dict[str, float] = {
            "macs": cost.macs(self.work.original),
            "bytes": FLOAT_BYTES * cost.parameters(self.work.original),
        }
        whole[ENERGY] = energy(self.work.original, self.work.target.energy, lambda _: FLOAT)
        self.whole = {name: float(whole[name]) for name in whole if name in self.amounts}
        if timed:
            original = self.work.floating(self.work.reference or self.work.target).artifact
            self.clock = Clock(original, self.work.original.example, self.work.options.measurement.threads)
            self.correction = self._timed()

    def __call__(self, budget: Mapping[str, float]) -> Plan:
        """The least damage within a budget; one that does not hold where nothing that was tried does.

        Raises:
            InputError: the budget is out of reach.
        """
        wanted = self._limits(budget)
        aims, again, tried = dict(wanted), 1.0, set[Assignment]()
        best: Plan | None = None
        for _ in range(ROUNDS):
            problem = Problem(self.spending.choices, self._terms(wanted), aims)
            try:
                found = solve(problem)
            except InputError:
                if best is None:
                    raise
                break  # limits that were moved are out of reach; what was found before stands
            plan = self._seen(found, problem.damage(found), wanted)
            LOG.info("%s", plan)
            if best is None or (not plan.holds, plan.damage) < (not best.holds, best.damage):
                best = plan
            loose = "ms" in wanted and plan.seen["ms"] < UNDER * wanted["ms"]
            if plan.holds and (not loose or found == problem.first or found in tried):
                break
            again *= CLOSER if found in tried else 1.0
            tried.add(found)
            aims = {name: again * aim for name, aim in self._moved(aims, plan).items()}
        assert best is not None
        return best

    def _limits(self, budget: Mapping[str, float]) -> dict[str, float]:
        found = {name: limit(budget[name], whole) for name, whole in self.whole.items() if name in budget}
        if "ms" in budget:
            found["ms"] = budget["ms"]
        if "latency" in budget:
            found["ms"] = budget["latency"] * self.clock.reference_ms
        return found

    def _terms(self, wanted: Mapping[str, float]) -> dict[str, list[Term]]:
        found = {name: terms for name, terms in self.counted.items() if name in wanted}
        return found | ({"ms": self.correction.terms()} if self.correction and "ms" in wanted else {})

    def _moved(self, aims: Mapping[str, float], plan: Plan) -> dict[str, float]:
        """The limits to give the solver next: by as much smaller as a plan misses what it was chosen for."""
        found = dict(aims)
        for name, wanted in plan.wanted.items():
            if name == "ms":  # what was seen has corrected the prediction; what it still misses is taken off
                terms = Problem(self.spending.choices, self._terms({"ms": wanted}), {})
                found[name] = wanted * min(1.0, terms.cost("ms", plan.assignment) / plan.seen["ms"])
            elif plan.seen[name] > wanted:
                found[name] = aims[name] * 0.99 * wanted / plan.seen[name]
        return found

    def _seen(self, assignment: Assignment, damage: float, wanted: Mapping[str, float]) -> Plan:
        mock = self.spending.mock(assignment)
        counted = self.spending.counts(assignment, mock, self.work.target)
        seen = {name: counted[name] for name in wanted if name in counted}
        if "ms" in wanted and self.correction is not None:
            seen["ms"] = self._ms(self.correction, assignment)
        return Plan(assignment, damage, seen, wanted, all(seen[name] <= OVER[name] * wanted[name] for name in wanted))

    # ---- Time -------------------------------------------------------------------------------------------------------

    def _timed(self) -> Correction:
        """The parts, and whole networks that correct their sum."""
        times = PartTimes(self.work.target, threads=self.work.options.measurement.threads)
        floats = PartTimes(self.work.target, integer=False, threads=times.threads)
        correction = Correction(self.spending.choices, self.spending.costs.milliseconds(times, floats))
        start, first = time.perf_counter(), None
        with progress("timing whole networks", total=NETWORKS) as advance:
            for assignment in drawn(self.spending.choices, self.seed):
                raw = correction.raw(assignment)
                first = first or raw
                if raw > 10 * first:  # ranks that the widths do not have
                    assignment = self.spending.without_ranks(assignment)
                self._ms(correction, assignment)
                advance()
                late = time.perf_counter() - start > SECONDS and len(correction.seen) >= FEWEST
                if late or len(correction.seen) >= NETWORKS:
                    return correction
        return correction

    def _ms(self, correction: Correction, assignment: Assignment) -> float:
        """Of a network with made-up weights, measured once."""
        if assignment not in correction.seen:
            share = self.known.get(assignment)
            if share is None:
                mock = self.spending.mock(assignment)
                formats = self.spending.layer_formats(assignment, mock)
                share = self.clock(lowered(mock, self.work.target, formats=formats)) / self.clock.reference_ms
                self.on_seen(assignment, share)
            correction.see(assignment, share * self.clock.reference_ms)
        return correction.seen[assignment]

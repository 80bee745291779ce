"""Several budgets, one look: damages, parts and whole networks are measured once, and every budget is planned from that."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphopt.artifacts import registry
from graphopt.compiler import stages
from graphopt.compiler.budget.amounts import TIMED, check
from graphopt.compiler.budget.clock import Clock
from graphopt.compiler.budget.planner import Planner
from graphopt.compiler.made_up import target_here
from graphopt.compiler.optimize import load
from graphopt.compiler.options import Measurement, Options
from graphopt.compiler.request import Request
from graphopt.compiler.runtimes import candidates
from graphopt.compiler.search.candidate import Candidate, Judged, make
from graphopt.compiler.search.folder import Folder, key
from graphopt.compiler.search.recipe import Recipe
from graphopt.compiler.search.results import Point, SearchResults
from graphopt.compiler.work import Work
from graphopt.data.preprocessing_sources import preprocessing_of
from graphopt.evaluation.scores import score
from graphopt.fitting.journal import fingerprint
from graphopt.ir import cost
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError

LOG = logging.getLogger(__name__)
Budget = Mapping[str, float]
Made = tuple[Budget, Future[Judged] | Judged]
AS_IT_IS = Recipe()


def search(
    model: Any,
    example_inputs: Any = None,
    *,
    budgets: Sequence[Budget],
    target: str | Target = "host",
    calibration: Any = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    preprocessing: Any = None,
    class_labels: Any = None,
    runtime: str | None = None,
    threads: int = 1,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> SearchResults:
    """A network for each of several budgets, with everything that can be shared measured once.

    Args:
        model, example_inputs, target, calibration, evaluate, preprocessing, class_labels, runtime, threads: as in
            `graphopt.optimize`.
        budgets: what networks may cost, each as `budget` of `graphopt.optimize`: `[{"latency": 0.5}, {"latency": 0.3}]`.
        folder: where artifacts are kept and what is known is written down after every step; the same call with the same folder
            goes on where it was interrupted. None: a new temporary folder.
        executor: makes and judges networks, several at a time (a pool of threads or processes, Dask's, ...); with processes all
            that is given has to be picklable, and the folder shared. None: one after the other, here. Time is measured here.
        seconds: after which no new budget is begun; at least the network as it is is there.
        seed: of the random networks that correct predicted times.

    Returns:
        Points with their artifacts; `front()`, `best`, `print()`, and `save("front.html")`.

    Raises:
        InputError: a budget that cannot be meant, nothing meets any of the budgets, or the folder holds another search.
    """
    if not budgets:
        raise InputError('give one budget or more, such as budgets=[{"latency": 0.5}, {"latency": 0.3}]')
    for budget in budgets:
        check(budget)
    options = Options(measurement=Measurement(runtime=runtime, threads=threads))
    aim = candidates(find(target), options)[0]
    if any({*TIMED} & {*budget} for budget in budgets):
        target_here(aim)
    prepared = None if preprocessing is None else preprocessing_of(preprocessing)
    request = Request(model, example_inputs, aim, options, calibration, evaluate, preprocessing=prepared)
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="graphopt-search-"))
    return _Search(stages.capture(request), budgets, place, executor, seconds, seed, class_labels).results()


class _Search:
    def __init__(
        self,
        work: Work,
        budgets: Sequence[Budget],
        place: Path,
        executor: Executor | None,
        seconds: float | None,
        seed: int,
        class_labels: Any,
    ) -> None:
        self.work, self.budgets, self.executor, self.seed = work, budgets, executor, seed
        self.amounts = sorted({name for budget in budgets for name in budget})
        self.class_labels = class_labels
        self.until = None if seconds is None else time.perf_counter() + seconds
        self.folder = Folder.open(place, self._task())
        self.clock: Clock | None = None
        self.planner: Planner | None = None
        self.noise = self._noise()
        if not (place / "original.graph").exists():
            work.original.save(place / "original.graph")

    def _task(self) -> str:
        """What a folder is for: the same model, data, target, amounts, seed and machine."""
        work = self.work
        asked = [work.target.to_dict(), self.amounts, self.seed, cost.host_cpu(), registry.version(work.runtime)]
        data = () if work.data.synthetic or work.data.one_shot else work.data
        return fingerprint([work.original], data, json.dumps(asked, sort_keys=True, default=str))

    def _noise(self) -> float:
        """By how much `evaluate` says something else of the same model."""
        evaluate, first = self.work.request.evaluate, self.work.report.accuracy_before
        if evaluate is None or first is None:
            return 0.0
        return abs(score(evaluate, self.work.original, "the original model, once more") - first)

    def results(self) -> SearchResults:
        """Every budget planned, made and measured, or as many as there was time for."""
        made, points, refused = list[Made](), list[Point](), list[tuple[Budget, str]]()
        for budget in ({}, *self.budgets):
            if budget and self.until is not None and time.perf_counter() > self.until:
                LOG.info("no time left for %s", budget)
                break
            plan = self._plan(budget)
            if "error" in plan:
                refused.append((budget, plan["error"]))
            elif self.executor is None:
                points.append(self._measured(budget, self._make(budget, plan)))
            else:
                made.append((budget, self._make(budget, plan)))
        points += [self._measured(*each) for each in made]
        if len(refused) == len(self.budgets):
            raise InputError("; ".join(dict.fromkeys(reason for _, reason in refused)))
        report = self.work.report
        return SearchResults(report.model, points, refused, report.accuracy_before, self.noise, self._notes())

    def _notes(self) -> list[str]:
        planner = self.planner
        agreement = planner.correction.agreement() if planner is not None and planner.correction else None
        told = (
            [] if agreement is None else [f"predicted and measured times of the networks looked at agree: {agreement}"]
        )
        if self.noise:
            told.append(f"evaluate differs by {self.noise:.3g} on the same model; what differs by less counts as equal")
        return told

    def _plan(self, budget: Budget) -> dict[str, Any]:
        """A recipe for a budget, planned now or before an interruption; or why there is none."""
        if (known := self.folder.plans.get(key(budget))) is not None:
            return known
        if not budget:
            return self._remembered(budget, {"recipe": AS_IT_IS.to_dict(), "damage": 0.0, "told": "", "holds": True})
        if self.planner is None:
            times = self.folder.times
            self.planner = Planner(self.work, self.amounts, seed=self.seed, known=dict(times), on_seen=self.folder.see)
        try:
            plan = self.planner(budget)
        except InputError as error:
            return self._remembered(budget, {"error": str(error)})
        spending = self.planner.spending
        formats = spending.layer_formats(plan.assignment, spending.mock(plan.assignment))
        recipe = Recipe.of(spending.passes(plan.assignment), formats).to_dict()
        found = {"recipe": recipe, "damage": plan.damage, "told": str(plan), "holds": plan.holds}
        return self._remembered(budget, found)

    def _remembered(self, budget: Budget, plan: dict[str, Any]) -> dict[str, Any]:
        self.folder.planned(budget, plan)
        return plan

    def _make(self, budget: Budget, plan: Mapping[str, Any]) -> Future[Judged] | Judged:
        """The network of a plan, where it is not there yet."""
        if (known := self.folder.points.get(key(budget))) is not None:
            return Judged(**known["judged"])
        request = self.work.request
        number = list(self.folder.plans).index(key(budget))
        candidate = Candidate(
            self.folder.path / "original.graph",
            self.work.target,
            Recipe(**plan["recipe"]),
            self.folder.path / f"point_{number:02}",
            request.calibration,
            request.evaluate,
            self.work.report.accuracy_before,
            request.preprocessing,
            self.class_labels,
            self.work.options.measurement.threads,
        )
        return make(candidate) if self.executor is None else self.executor.submit(make, candidate)

    def _measured(self, budget: Budget, made: Future[Judged] | Judged) -> Point:
        """With the time of its artifact, which nothing else disturbs."""
        judged = made.result() if isinstance(made, Future) else made
        plan, number = self.folder.plans[key(budget)], list(self.folder.plans).index(key(budget))
        folder = self.folder.path / f"point_{number:02}"
        known = self.folder.points.get(key(budget))
        costs = known["costs"] if known else self._costs(folder, judged)
        self.folder.made(budget, {"judged": asdict(judged), "costs": costs})
        told = plan["told"] if plan["holds"] else f"missed: {plan['told']}"
        return Point(
            budget, Recipe(**plan["recipe"]), str(folder), plan["damage"], costs, judged.score, judged.sqnr_db, told,
            judged.error,
        )  # fmt: skip

    def _costs(self, folder: Path, judged: Judged) -> dict[str, float]:
        found = {"bytes": float(judged.bytes), "macs": float(judged.macs)}
        try:
            target_here(self.work.target)
        except InputError:
            return found
        if self.clock is None:
            original = self.work.floating(self.work.reference or self.work.target).artifact
            self.clock = Clock(original, self.work.original.example, self.work.options.measurement.threads)
        return {"ms": self.clock(load(folder)), **found}

"""Candidates of MetaSchedule: samples of a layer's space of schedules, bred from those that were fast.

Shao et al. 2022, "Tensor Program Optimization with Probabilistic Programs": an evolutionary search. Its cost model, boosted trees
over features of the loops, learns from what was measured. Layers take turns, a batch each, until one has gained nothing for a
while. Known measurements are learned from first, so that a search goes on where it was.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import tvm

from graphopt.backends.tvm.schedules import Conv, Sample, Variant, sampled
from graphopt.backends.tvm.schedules.sampled import Workload
from graphopt.backends.tvm.tuning.database import Database
from graphopt.backends.tvm.tuning.places import TuningDevice
from graphopt.utils.errors import InputError

BATCH = 16  # samples that are measured before the search learns from them
PATIENCE = 48  # samples without a gain until a layer is left alone
POPULATION, GENERATIONS = 64, 2
LEARNED = 32  # measurements from which on the cost model is asked
MORE = 1.01  # times faster that counts as a gain
UNLIMITED = 1 << 20
SEED = 1
INTRINSICS = "tvm.s_tir.tensor_intrin"


def check_installed() -> None:
    """Raises InputError where the cost model's library is missing."""
    try:
        import xgboost  # noqa: F401
    except ImportError as error:
        raise InputError(
            "tuner='metaschedule' needs xgboost: pip install 'graphopt[metaschedule]', or take tuner='tiles'"
        ) from error


def waiting(layers: Sequence[Conv], place: TuningDevice, database: Database) -> Iterator[tuple[Conv, Variant]]:
    """Samples to be measured; before the next is asked for, its speedup is in the database."""
    from tvm.s_tir.meta_schedule.cost_model import XGBModel

    model = XGBModel(num_warmup_samples=LEARNED, num_tuning_cores=os.cpu_count() or 1)
    active = [layer for layer in layers if sampled.applies(layer, place.machine)]
    searches: dict[Conv, Search] = {}
    while active:
        for layer in list(active):
            if layer not in searches:
                searches[layer] = Search(layer, place, model, database)
            search = searches[layer]
            samples = search.propose()
            for sample in samples:
                if sample not in database.of(layer):
                    yield layer, sample
            search.learn(samples)
            if not samples or search.exhausted:
                active.remove(layer)


class Search:
    """Over the samples of one layer.

    Attributes:
        idle: samples since the last gain.
    """

    def __init__(self, layer: Conv, place: TuningDevice, model: Any, database: Database) -> None:
        from tvm.s_tir import meta_schedule as ms

        self.layer, self.work, self.idle = layer, Workload(layer, place.machine), 0
        self._speedups: Mapping[Variant, float] = database.of(layer)
        self._best = 1.0
        self._target, self._model, self._records = place.target, model, ms.database.MemoryDatabase()
        self._module = tvm.IRModule({"main": self.work.function()})
        self._arguments = ms.arg_info.ArgInfo.from_prim_func(self._module["main"])
        generator = ms.space_generator.ScheduleFn(
            self._spaces,
            sch_rules=[],
            postprocs=[_in_registers(self.work)],
            mutator_probs={ms.mutator.MutateTileSize(): 1.0},
        )
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_min_unmeasured=BATCH, genetic_num_iters=GENERATIONS
        )
        with _without_intrinsics():
            self._context = ms.TuneContext(
                self._module,
                target=place.target,
                space_generator=generator,
                search_strategy=strategy,
                rand_state=SEED,
                num_threads=os.cpu_count() or 1,
                logger=_quiet(),
            )
        self._proposed: list[Any] = []
        self._remember()
        designs = self._context.generate_design_space()
        self._context.pre_tuning(UNLIMITED, BATCH, designs, self._records, model)

    @property
    def exhausted(self) -> bool:
        return self.idle >= PATIENCE

    def propose(self) -> list[Sample]:
        """What to measure next; empty where nothing is left."""
        self._proposed = list(self._context.generate_measure_candidates() or [])
        return [Sample.of(candidate.sch) for candidate in self._proposed]

    def learn(self, samples: Sequence[Sample]) -> None:
        """Take in what was measured of the samples that were proposed."""
        if samples:
            results = self._take(self._proposed, samples)
            self._context.notify_runner_results(self._proposed, results)
        found = max((self._speedups[sample] for sample in samples), default=0.0)
        self.idle = 0 if found > self._best * MORE else self.idle + len(samples)
        self._best = max(self._best, found)

    def _spaces(self, plan: Any) -> list[Any]:
        plans = []
        for space in sampled.spaces(self.work):
            plans.append(plan.copy())
            space(plans[-1])
        return plans

    def _remember(self) -> None:
        """Learn from what the database knows."""
        from tvm.s_tir.meta_schedule import MeasureCandidate

        known = [v for v in self._speedups if isinstance(v, Sample)]
        candidates = [MeasureCandidate(sampled.scheduled(self.work, sample), self._arguments) for sample in known]
        if known:
            self._take(candidates, known)
            self._best = max(self._best, *(self._speedups[sample] for sample in known))

    def _take(self, candidates: Sequence[Any], samples: Sequence[Sample]) -> list[Any]:
        from tvm.s_tir import meta_schedule as ms

        workload = self._records.commit_workload(self._module)
        results = []
        for candidate, sample in zip(candidates, samples, strict=True):
            speedup = self._speedups[sample]
            seconds, failed = ([1 / speedup], None) if speedup else (None, "it failed")
            results.append(ms.runner.RunnerResult(seconds, failed))
            if seconds:
                record = ms.database.TuningRecord(candidate.sch.trace, workload, seconds, self._target, self._arguments)
                self._records.commit_tuning_record(record)
        self._model.update(self._context, candidates, results)
        return results


def _in_registers(work: Workload) -> Any:
    """Refuses candidates whose tile does not fit."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.postproc import PyPostproc

    @derived_object
    class InRegisters(PyPostproc):  # type: ignore[misc]
        def _initialize_with_tune_context(self, context: Any) -> None:
            """It needs nothing of it."""

        def apply(self, plan: Any) -> bool:
            return Sample.of(plan).fits(work)

        def clone(self) -> Any:
            return InRegisters()

    return InRegisters()


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keeps TVM from loading all its tensor intrinsics, which are for other machines or do not compile here: half a minute."""
    known = sys.modules.get(INTRINSICS)
    sys.modules[INTRINSICS] = known or ModuleType(INTRINSICS)
    try:
        yield
    finally:
        if known is None:
            del sys.modules[INTRINSICS]


def _quiet() -> logging.Logger:
    logger = logging.getLogger("graphopt.metaschedule")
    logger.setLevel(logging.ERROR)
    return logger

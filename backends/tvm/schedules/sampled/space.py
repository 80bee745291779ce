"""The schedules a layer may have, as decisions for MetaSchedule to sample.

    for task in parallel over (image, rows, columns, vectors of channels), outer:
        for rows, columns, vectors, middle:                  in one of two orders
            sums of a tile in registers = 0
            for ky, kx, k:  for k, inner:  tile += data * weights
            result of the tile

Sampled are the three factors of rows, columns and vectors, and how many steps of the sum are written out. Either pixels or
channels are the outer loops; data is staged whole, or by each task what it reads. What does not fit the registers is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm import s_tir

from graphopt.backends.tvm.schedules.emit import WORTH_WAKING
from graphopt.backends.tvm.schedules.epilogue import require
from graphopt.backends.tvm.schedules.sampled.intrinsics import registered
from graphopt.backends.tvm.schedules.sampled.workload import RESULT, STAGED, SUMS, Workload
from graphopt.backends.tvm.schedules.sliding import UNROLLED

ROWS, COLUMNS, VECTORS, STEPS = 8, 32, 8, 16  # of one tile at most
OUTSIDE, BY_TASK = "graphopt.channels_outside", "graphopt.staged_by_task"  # annotations: the space a schedule is of


@dataclass(frozen=True)
class Sample:
    """What was decided for a layer.

    Attributes:
        channels_outside: its vectors of channels are the outer loops, else its pixels.
        staged_by_task: data is staged by each task, else whole.
        rows, columns, vectors: factors (outer, middle, tile) of the result's.
        steps: factors (outer, inner) of the sum's; empty for depthwise layers.
    """

    channels_outside: bool
    staged_by_task: bool
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    vectors: tuple[int, ...]
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        parts = [len(self.rows), len(self.columns), len(self.vectors), len(self.steps)]
        require(parts in ([3, 3, 3, 2], [3, 3, 3, 0]), f"{self} has other factors than a schedule")

    @classmethod
    def of(cls, plan: Any) -> Sample:
        """That a schedule was sampled with."""
        root = plan.get(plan.get_sblock("root")).annotations
        found = [tuple(map(int, plan.trace.decisions[i])) for i in plan.trace.insts if i in plan.trace.decisions]
        return cls(bool(root[OUTSIDE]), bool(root[BY_TASK]), *found)

    def fits(self, work: Workload) -> bool:
        """Whether its tile stays in registers."""
        pixels, vectors = self.rows[-1] * self.columns[-1], self.vectors[-1]
        data = pixels if work.machine.by_element else 1
        return pixels * vectors + vectors + data <= work.machine.vector_registers


def spaces(work: Workload) -> list[Callable[[Any], None]]:
    """Functions that schedule `work.function()`, sampling; each has its own order and way to stage."""

    def space(outside: bool, by_task: bool) -> Callable[[Any], None]:
        return lambda plan: _Planner(work, plan).run(outside, by_task)

    return [space(*ways) for ways in product((False, True), (False, True) if work.staging.needed else (False,))]


def scheduled(work: Workload, sample: Sample) -> Any:
    """The schedule that these decisions make. Raises tvm.error.Error where they are of another layer."""
    plan = s_tir.Schedule(work.function())
    factors = [sample.rows, sample.columns, sample.vectors, sample.steps]
    _Planner(work, plan, factors).run(sample.channels_outside, sample.staged_by_task)
    return plan


class _Planner:
    """Schedules one layer, with factors that are given in the order in which they are asked for, or sampled."""

    def __init__(self, work: Workload, plan: Any, factors: list[tuple[int, ...]] | None = None) -> None:
        self.work, self.plan, self.factors = work, plan, factors

    def run(self, channels_outside: bool, staged_by_task: bool) -> None:
        work, plan = self.work, self.plan
        sums, result = plan.get_sblock(SUMS), plan.get_sblock(RESULT)
        image, y, x, o, lane, ky, kx, *k = plan.get_loops(sums)
        y0, y1, y2 = self._split(y, 3, ROWS)
        x0, x1, x2 = self._split(x, 3, COLUMNS)
        o0, o1, o2 = self._split(o, 3, VECTORS)
        steps = self._split(k[0], 2, STEPS) if k else []
        outer, middle = ([o0, image, y0, x0], [o1, y1, x1]) if channels_outside else ([image, y0, x0, o0], [y1, x1, o1])
        plan.reorder(*outer, *middle, ky, kx, *steps, y2, x2, o2, lane, *k[1:])
        plan.reverse_compute_at(result, middle[-1], preserve_unit_loops=True)
        plan.set_scope(sums, 0, "local")
        taps = work.spec.kernel[0] * work.spec.kernel[1]
        for loop in (
            [*((ky, kx) if taps <= UNROLLED else (kx,)), y2, x2, o2] if work.depthwise else [steps[1], y2, x2, o2]
        ):
            plan.unroll(loop)
        task = plan.fuse(*outer)
        self._on_all_cores(task)
        self._vectorize_result(result)
        if work.staging.needed:
            self._stage(task if staged_by_task else None)
        self._multiply(sums, ky, lane)
        root = plan.get_sblock("root")
        plan.annotate(root, OUTSIDE, int(channels_outside))
        plan.annotate(root, BY_TASK, int(staged_by_task))

    def _split(self, loop: Any, parts: int, most: int) -> list[Any]:
        given = None if self.factors is None else self.factors.pop(0)
        factors = self.plan.sample_perfect_tile(loop, parts, max_innermost_factor=most, decision=given)
        return list(self.plan.split(loop, factors))

    def _on_all_cores(self, loop: Any) -> None:
        """As `emit.tasks`."""
        if self.work.machine.cores > 1 and self.work.spec.macs > WORTH_WAKING:
            self.plan.parallel(loop)

    def _vectorize_result(self, result: Any) -> None:
        *_, rows, columns, channels = self.plan.get_loops(result)
        vectors, lanes = self.plan.split(channels, [None, self.work.dot.lanes])
        self.plan.vectorize(lanes)
        for loop in (rows, columns, vectors):
            self.plan.unroll(loop)

    def _stage(self, task: Any | None) -> None:
        plan, staged = self.plan, self.plan.get_sblock(STAGED)
        if task is not None:
            plan.compute_at(staged, task, preserve_unit_loops=True)
        *_, image, row, _, channels = plan.get_loops(staged)
        lanes = self.work.machine.lanes(self.work.staging.dtype)
        while self.work.spec.shape[3] % lanes:
            lanes //= 2
        _, vector = plan.split(channels, [None, lanes])
        plan.vectorize(vector)
        if task is None:
            self._on_all_cores(plan.fuse(image, row))

    def _multiply(self, sums: Any, over: Any, lane: Any) -> None:
        """Start the sums before their first loop, and compute with vectors or a dot product."""
        plan, dot = self.plan, self.work.dot
        if dot.depth == 1:
            plan.vectorize(lane)
            plan.decompose_reduction(sums, over)
        else:
            start = plan.decompose_reduction(sums, over)
            plan.vectorize(plan.get_loops(start)[-1])
            plan.tensorize(lane, registered(dot))

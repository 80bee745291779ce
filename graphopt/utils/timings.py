"""Where the seconds of long work went: by stage, and by part of a stage.

timings = Timings()
with timings.stage("lower"), timings.part("evaluate"): ...
run(passes, graph, on_step=timings.follow(["prepare", "quantize", "quantize"]))    the stage of each pass, in order
timings.print()

Stages and parts are logged as they end, and stages as they begin, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Table

LOG = logging.getLogger(__name__)
REST = 0.005  # seconds of a stage from which what no part took is shown


class Timed(Protocol):
    """A step that was timed by whoever took it."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...


@dataclass
class Stage:
    """One stage: its name, its seconds from begin to end, and (name, seconds) of its parts in order; equal names may repeat."""

    name: str
    seconds: float = 0.0
    parts: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Timings(Printed):
    """See the head of this file. Wall-clock seconds of this process; stages in order, none within another."""

    stages: list[Stage] = field(default_factory=list)
    _in_part = False  # no field: nothing that is kept

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        self.stages.append(Stage(name))
        LOG.info("%s begins", name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.stages[-1].seconds = time.perf_counter() - begin
            LOG.info("%s took %.2f s", name, self.stages[-1].seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the stage that is open; within another part it belongs to that."""
        if self._in_part:
            yield
            return
        self._in_part, parts, begin = True, self.stages[-1].parts, time.perf_counter()
        try:
            yield
        finally:
            parts.append((name, time.perf_counter() - begin))
            LOG.debug("%s, %s: %.2f s", self.stages[-1].name, *parts[-1])
            self._in_part = False

    def follow(self, stages: Sequence[str]) -> Callable[[Timed], None]:
        """What to call after each step of a series: steps are parts of these stages, which begin where the one before ended."""
        names, last = iter(stages), time.perf_counter()

        def done(step: Timed) -> None:
            nonlocal last
            name, now = next(names), time.perf_counter()
            if not self.stages or self.stages[-1].name != name:
                self.stages.append(Stage(name))
            self.stages[-1].seconds += now - last
            self.stages[-1].parts.append((step.name, step.seconds))
            last = now

        return done

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    def blocks(self) -> list[Block]:
        rows = []
        for stage in self.stages:
            rows.append([stage.name, "", f"{stage.seconds:.2f}"])
            rows += [["", name, f"{seconds:.2f}"] for name, seconds in stage.parts]
            rest = stage.seconds - sum(seconds for _, seconds in stage.parts)
            if stage.parts and rest >= REST:
                rows.append(["", "(the rest)", f"{rest:.2f}"])
        rows.append(["all", "", f"{self.seconds:.2f}"])
        return [Table([Column("stage"), Column("part"), Column("seconds", number=True)], rows)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

"""Tune: measure other kernels for every layer, and keep those that are faster than the rule's.

    tune(layers, Here(code), Budget.of("60s"), "tuned.jsonl").variants             {layer: variant}, of the layers that gained
    tune(layers, There(code, connection, command), Budget.of(500), "tuned.jsonl", tuner="metaschedule")
    known(layers, code, "tuned.jsonl")                                             the same, of what was measured before

`tiles` tries other register tiles in the kernels written by hand; `metaschedule` searches a space of whole schedules. A variant
is timed in turn with the rule's kernel, so that other work on the machine hits both; one that seems faster is timed again, for
longer, and the lesser gain counts. What was measured is written down at once, and is neither measured nor counted again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from graphopt.backends.tvm.build import Code
from graphopt.backends.tvm.schedules import Conv, Variant
from graphopt.backends.tvm.tuning import metaschedule, tiles
from graphopt.backends.tvm.tuning.bench import GAIN, Bench
from graphopt.backends.tvm.tuning.budget import Budget
from graphopt.backends.tvm.tuning.database import Database
from graphopt.backends.tvm.tuning.places import Here, There, TuningDevice
from graphopt.utils.errors import InputError
from graphopt.utils.progress import progress

__all__ = [
    "TUNERS",
    "Bench",
    "Budget",
    "Database",
    "Here",
    "There",
    "Tuned",
    "Tuner",
    "TuningDevice",
    "check_tuner",
    "known",
    "tune",
]

Tuner = Literal["tiles", "metaschedule"]
TUNERS: tuple[Tuner, ...] = get_args(Tuner)


def check_tuner(tuner: Tuner) -> None:
    """Raises InputError where there is no such tuner, or a library that it needs is missing."""
    if tuner not in TUNERS:
        raise InputError(f"tuner is one of {', '.join(TUNERS)}, got {tuner!r}")
    if tuner == "metaschedule":
        metaschedule.check_installed()


def tune(
    layers: Sequence[Conv],
    place: TuningDevice,
    budget: Budget,
    path: str | Path | None = None,
    tuner: Tuner = "tiles",
) -> Tuned:
    """Measure until the budget is used up; the best variant of each layer that has one faster than the rule's.

    Args:
        path: of the database. Whatever it knows of these layers for this code counts, by whichever tuner.

    Raises:
        InputError: the database cannot be read or written; a library is missing. ArtifactError: a device was lost.
    """
    check_tuner(tuner)
    database, bench = Database(path, place.code), Bench(place)
    by_work = sorted(dict.fromkeys(layers), key=lambda layer: -layer.macs)
    waiting = {"tiles": tiles.waiting, "metaschedule": metaschedule.waiting}[tuner](by_work, place, database)
    end = time.monotonic() + (budget.seconds or float("inf"))
    with progress("tuning", budget.trials) as advance:
        for done, (layer, variant) in enumerate(waiting):
            if done == budget.trials or time.monotonic() > end:
                break
            database.add(layer, variant, bench.speedup(layer, variant))
            advance()
    return _best(layers, database)


def known(layers: Sequence[Conv], code: Code, path: str | Path) -> Tuned:
    """What a database knows of these layers. Raises InputError where there is none, or it cannot be read."""
    return _best(layers, Database(path, code, read_only=True))


@dataclass(frozen=True)
class Tuned:
    """Attributes:
    variants: of the layers that gained. speedups: theirs, over the rule's kernels.
    kernels, layers: how many kernels have been measured, of how many different layers.
    """

    variants: dict[Conv, Variant]
    speedups: list[float]
    kernels: int
    layers: int

    def __str__(self) -> str:
        measured = f"tuning: of {self.kernels} kernels measured for {self.layers} layers"
        if not self.variants:
            return f"{measured}, none is faster than the rule's"
        low, high = min(self.speedups), max(self.speedups)
        return f"{measured}, those of {len(self.variants)} are faster than the rule's, {low:.2f} to {high:.2f} times"


def _best(layers: Sequence[Conv], database: Database) -> Tuned:
    different = list(dict.fromkeys(layers))
    kernels = [len(database.of(layer)) for layer in different]
    best = {layer: found for layer in different if (found := database.best(layer)) is not None}
    gained = {layer: found for layer, found in best.items() if found[1] > GAIN}
    variants = {layer: variant for layer, (variant, _) in gained.items()}
    return Tuned(variants, [speedup for _, speedup in gained.values()], sum(kernels), len(best))

"""How long artifacts take, each in turn with a reference, so that figures of different moments can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from graphopt.artifacts.artifact import Artifact
from graphopt.ir.graph import Example

ROUNDS, SECONDS, FEWEST = 20, 2.0, 5  # of turns; fewer once the seconds are over
IN_A_ROW = 6  # calls of a turn, of which the fastest counts: other work on the machine makes some longer, none shorter
QUANTILE = 0.25  # of the turns


class Clock:
    """Milliseconds as of the moment when this was made.

    Args:
        reference: an artifact that is timed beside each other one.
        example: the inputs of all.
        threads: of the runtime.

    Attributes:
        reference_ms: what the reference took then.
    """

    def __init__(self, reference: Artifact, example: Example, threads: int = 1) -> None:
        self.example, self.threads = example, threads
        self.reference = self._call(reference)
        (self.reference_ms,) = in_turn(self.reference)

    def __call__(self, artifact: Artifact) -> float:
        """What a call takes: the share of the reference's time, measured beside it, times `reference_ms`."""
        reference, other = in_turn(self.reference, self._call(artifact))
        return other / reference * self.reference_ms

    def _call(self, artifact: Artifact) -> Callable[[], float]:
        artifact.set_threads(self.threads)
        return lambda: artifact.milliseconds(*self.example.args, **self.example.kwargs)


def in_turn(*calls: Callable[[], float]) -> list[float]:
    """Milliseconds of functions that return what they took, undisturbed."""
    turns: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + SECONDS
    for number in range(ROUNDS):
        if number >= FEWEST and time.perf_counter() > end:
            break
        for call, found in zip(calls, turns, strict=True):
            call()  # finds the caches full of the other's
            found.append(min(call() for _ in range(IN_A_ROW - 1)))
    return [float(np.quantile(found, QUANTILE)) for found in turns]

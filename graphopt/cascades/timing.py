"""What each way through the stages takes of a sample, by the clock, in turn with the plain network on the same sample.

The expected time of a policy is the mean over the ways that samples take, of what was measured of each:

    ms    = sum over stages k of  rate[k] * median over samples that stop at k of  ms
    ratio = sum over stages k of  rate[k] * median over samples that stop at k of  ms / ms of the plain network

The milliseconds of a sample are the least of several turns: whatever else the machine does only adds to them. They are never
computed from multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.staged import StagedArtifact
from graphopt.cascades.answers import Answers
from graphopt.ir import cost
from graphopt.policies import Policy

Array = np.ndarray[Any, Any]
OF_EACH = 8  # samples that are timed of each way
TURNS = 10
SECONDS = 4.0  # that the timing of one way may take


class Taken(NamedTuple):
    """Of one policy: expected milliseconds of it and of the plain network, and their ratio, all as the head of this file says."""

    ms: float
    plain_ms: float
    ratio: float


def expected(artifact: StagedArtifact, plain: Artifact, answers: Answers, policy: Policy) -> Taken:
    """What a policy takes of a sample, batch 1."""
    path, found = answers.path(policy), list[tuple[float, Taken]]()
    for stage in np.unique(path):
        rows = np.flatnonzero(path == stage)
        found.append((len(rows) / len(path), along(artifact, plain, answers, policy, rows)))
    return Taken(*(sum(rate * float(taken[i]) for rate, taken in found) for i in range(3)))


def worst(artifact: StagedArtifact, plain: Artifact, answers: Answers) -> Taken:
    """What a sample takes that goes through all stages, each with its decision."""
    policy, count = artifact.policy, len(answers)
    never = policy.at([1.0 if t is not None else None for t in policy.thresholds])
    rows = np.flatnonzero(answers.path(never) == policy.stages - 1)
    if len(rows):
        return along(artifact, plain, answers, never, rows)
    return along(artifact, plain, answers, policy.at([None] * len(policy.thresholds)), np.arange(count))


def along(artifact: StagedArtifact, plain: Artifact, answers: Answers, policy: Policy, rows: Array) -> Taken:
    """Medians over some samples that all take the same way."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, OF_EACH).round().astype(int))]
    ours, theirs, ratios = list[float](), list[float](), list[float]()
    for row in chosen:
        inputs = [np.ascontiguousarray(array[row : row + 1]) for array in answers.inputs]
        calls: dict[str, Callable[[], Any]] = {
            "staged": lambda inputs=inputs: artifact._outcome(inputs, policy),  # type: ignore[misc]
            "plain": lambda inputs=inputs: plain._run(inputs),  # type: ignore[misc]
        }
        taken = cost.timings(calls, repeats=TURNS, warmup=1, budget_seconds=SECONDS / len(chosen))
        ours.append(min(taken.ms["staged"]))
        theirs.append(min(taken.ms["plain"]))
        ratios.append(ours[-1] / theirs[-1])
    return Taken(*(float(np.median(each)) for each in (ours, theirs, ratios)))

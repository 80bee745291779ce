"""Thresholds of all stages, chosen together on held-out samples: every sensible pair of mean cost and mean score.

    minimize    sum over samples of the cost of the stages that it runs
    maximize    sum over samples of the score of the stage that it stops at

A dynamic program over stages. A state is how many samples are left; of the ways to get there, those are kept that no other one
betters in cost and score so far. A stage offers as candidates thresholds between samples, at `LEVELS` shares of those that are
left, and to stop none. With up to three stages every combination of candidates is looked at; with more, states of nearly the
same number are one (which samples are left differs by then, so that this is no longer exact).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graphopt.utils.errors import InputError
from graphopt.utils.fronts import front as unbeaten

Array = np.ndarray[Any, Any]
LEVELS = 200  # candidates of a stage
STATES = 200  # numbers of samples that are told apart
WAYS = 4  # kept of each state


class Choice(NamedTuple):
    """One way to choose.

    Attributes:
        thresholds: of each stage but the last; None: nothing stops there.
        cost, score: the means over samples.
        rates: the share of samples that each stage answers.
    """

    thresholds: tuple[float | None, ...]
    cost: float
    score: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Samples:
    """What is known of held-out samples.

    Attributes:
        confidence: of each stage but the last, [stages - 1, N].
        score: of each stage's answer, [stages, N]: 1 where it is right, 0 where it is not, or any other measure.
        cost: what a stage takes of each sample that it runs, [stages].
        skippable: of each stage but the last, whether it need not run where nothing stops at it.
    """

    confidence: Array
    score: Array
    cost: Sequence[float]
    skippable: Sequence[bool]


class _Way(NamedTuple):
    """One way through the first stages: what it chose, which samples are left, sums over those that stopped, how many stopped at
    each stage, and what the last stage would score on those that are left."""

    thresholds: tuple[float | None, ...]
    left: Array
    cost: float
    score: float
    stopped: tuple[int, ...]
    rest: float


def front(samples: Samples) -> list[Choice]:
    """The choices that no other one betters in both mean cost and mean score, the cheapest first."""
    count, last = samples.score.shape[1], len(samples.cost) - 1
    ways = [_Way((), np.arange(count), 0.0, 0.0, (), float(samples.score[-1].sum()))]
    for stage in range(last):
        ways = [new for way in ways for new in _expanded(samples, stage, way)]
        if 0 < stage < last - 1:
            ways = _kept(ways, count)
    choices = []
    for way in ways:
        cost, left = way.cost + len(way.left) * samples.cost[-1], len(way.left)
        rates = tuple(n / count for n in (*way.stopped, left))
        choices.append(Choice(way.thresholds, cost / count, (way.score + way.rest) / count, rates))
    return unbeaten(choices, lambda choice: choice.cost, lambda choice: choice.score)


def _expanded(samples: Samples, stage: int, way: _Way) -> Iterator[_Way]:
    """A way with each candidate threshold of its next stage."""
    count = len(way.left)
    running = way.cost + count * samples.cost[stage]
    cost = way.cost if samples.skippable[stage] else running
    yield way._replace(thresholds=(*way.thresholds, None), cost=cost, stopped=(*way.stopped, 0))
    if not count:
        return
    sure = samples.confidence[stage, way.left]
    order = np.argsort(-sure, kind="stable")
    sure, rows = sure[order], way.left[order]
    scores = way.score + np.cumsum(samples.score[stage, rows])
    rests = way.rest - np.cumsum(samples.score[-1, rows])
    for stop in _stops(sure):
        threshold = _between(sure[stop - 1], sure[stop]) if stop < count else 0.0
        score, rest = float(scores[stop - 1]), float(rests[stop - 1])
        yield _Way((*way.thresholds, threshold), rows[stop:], running, score, (*way.stopped, stop), rest)


def _stops(sure: Array) -> list[int]:
    """How many samples stop, for each candidate threshold on confidences that fall: those that are alike stop together."""
    count = len(sure)
    wanted = np.linspace(0, count, min(LEVELS, count) + 1).round().astype(int)[1:]
    return sorted(set(np.searchsorted(-sure, -sure[wanted - 1], side="right").tolist()))


def _between(higher: float, lower: float) -> float:
    """A threshold that only the higher of two neighbours reaches."""
    middle = float(higher + lower) / 2
    return middle if lower < middle <= higher else float(higher)


def _kept(ways: list[_Way], count: int) -> list[_Way]:
    """Of each state the ways that are not bettered, at most `WAYS` of them, spread over their costs."""
    states: dict[int, list[_Way]] = {}
    for way in ways:
        states.setdefault(math.ceil(len(way.left) * STATES / count), []).append(way)
    found = []
    for group in states.values():
        good = unbeaten(group, lambda way: way.cost, lambda way: way.score)
        places = np.unique(np.linspace(0, len(good) - 1, WAYS).round().astype(int))
        found += [good[place] for place in places]
    return found


def choose(choices: Sequence[Choice], *, least_score: float | None = None, most_cost: float | None = None) -> Choice:
    """The cheapest of a front with a score, or the best within a cost.

    Raises:
        InputError: none is good or cheap enough.
    """
    if most_cost is not None:
        within = [choice for choice in choices if choice.cost <= most_cost]
        if not within:
            raise InputError(
                f"no thresholds keep to {most_cost:g} milliseconds; the cheapest take {choices[0].cost:.3g}"
            )
        return within[-1]
    assert least_score is not None
    good = next((choice for choice in choices if choice.score >= least_score - 1e-12), None)
    if good is None:
        raise InputError(f"no thresholds reach a score of {least_score:.4g}; the best reach {choices[-1].score:.4g}")
    return good

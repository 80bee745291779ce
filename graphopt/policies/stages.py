"""Stages one after the other: what a sample needs is computed, and no more.

A `Network` says what each stage reads: inputs of the network, or what a stage before handed on. Exits, cascades of networks and
input resolutions are the same thing:

    exits      stage 1 reads what stage 0 hands on        reads = [[(-1, 0)], [(0, 1)]]
    cascade    every stage reads the inputs               reads = [[(-1, 0)], [(-1, 0)]]

After each stage the samples whose answer is good enough leave, and the others are moved together, so that the next stage
computes a smaller batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from graphopt.policies.confidence import check_classes
from graphopt.policies.elementary import NEAR, QUICK
from graphopt.policies.policy import Policy
from graphopt.utils.errors import InputError

Array = np.ndarray[Any, Any]
Compute = Callable[[list[Array]], list[Array]]
Limit = Callable[[int, Array, Array], Array]
Source = tuple[int, int]  # (-1, i): input i of the network; (k, j): output j of stage k


@dataclass(frozen=True)
class Network:
    """What stages read.

    Attributes:
        reads: for each stage the sources of its inputs, in order.
        answers: how many of a stage's outputs, the first ones, are its answer; it hands on the others.

    Raises:
        ValueError: a stage reads what is not there yet.
    """

    reads: tuple[tuple[Source, ...], ...]
    answers: int = 1

    def __post_init__(self) -> None:
        for stage, sources in enumerate(self.reads):
            if not all(-1 <= k < stage and j >= (0 if k < 0 else self.answers) for k, j in sources):
                raise ValueError(f"stage {stage} reads {list(sources)}, which is not there before it")

    def __len__(self) -> int:
        return len(self.reads)

    @cached_property
    def handing(self) -> frozenset[int]:
        """The stages that hand something on."""
        return frozenset(k for sources in self.reads for k, _ in sources)

    def needed(self, stage: int) -> set[Source]:
        """What stages from this one on read."""
        return {source for sources in self.reads[stage:] for source in sources}


class Outcome(NamedTuple):
    """Of a batch: the outputs, and the stage that answered each sample, [N]."""

    outputs: list[Array]
    path: Array


def run_stages(
    network: Network, compute: Sequence[Compute], policy: Policy, inputs: list[Array], limit: Limit | None = None
) -> Outcome:
    """Compute a batch: inputs whose first dimension counts samples.

    Args:
        compute: what each stage computes, from its inputs to its outputs.
        limit: (stage, which samples are to go on, how sure the stage is of each) -> which go on; None: all of them.

    Raises:
        InputError: an empty batch, outputs that are no classes, or confidence that is none.
    """
    count, last = len(inputs[0]), len(compute) - 1
    if not count:
        raise InputError("the batch is empty; give at least one sample")
    if count == 1:
        return _alone(network, compute, policy, inputs, limit)
    held: dict[Source, Array] = {(-1, i): array for i, array in enumerate(inputs)}
    rows, path = np.arange(count), np.zeros(count, np.int64)
    results: list[Array] = []
    history = History(policy, count, always=limit is not None)
    for stage, run in enumerate(compute):
        if stage < last and limit is None and skippable(network, policy, stage):
            continue
        outputs = run([held[source] for source in network.reads[stage]])
        answers = outputs[: network.answers]
        going = np.zeros(len(rows), bool) if stage == last else history.going(stage, answers)
        if limit is not None and going.any():
            going &= limit(stage, going, history.sure)
        path[rows] = stage
        if not results:
            results = answers if not going.any() else [array.copy() for array in answers]
        else:
            for result, array in zip(results, answers, strict=True):
                result[rows] = array
        if not going.any():
            break
        held |= {(stage, j): array for j, array in enumerate(outputs) if j >= network.answers}
        held = {source: held[source] for source in network.needed(stage + 1) if source in held}
        if not going.all():
            held, rows = {source: array[going] for source, array in held.items()}, rows[going]
            history.keep(going)
    return Outcome(results, path)


def _alone(
    network: Network, compute: Sequence[Compute], policy: Policy, inputs: list[Array], limit: Limit | None
) -> Outcome:
    """The same of one sample: nothing is moved together, and less is done between stages."""
    held: dict[Source, Array] = {(-1, i): array for i, array in enumerate(inputs)}
    history, last = History(policy, 1, always=limit is not None), len(compute) - 1
    stage, answers = 0, list[Array]()
    for stage, run in enumerate(compute):
        if stage < last and limit is None and skippable(network, policy, stage):
            continue
        outputs = run([held[source] for source in network.reads[stage]])
        answers = outputs[: network.answers]
        going = np.zeros(1, bool) if stage == last else history.going(stage, answers)
        if limit is not None and going[0]:
            going = going & limit(stage, going, history.sure)
        if not going[0]:
            break
        held |= {(stage, j): array for j, array in enumerate(outputs)}
    return Outcome(answers, np.array([stage]))


def skippable(network: Network, policy: Policy, stage: int) -> bool:
    """Whether a stage need not run: nothing stops at it, and nobody wants to know what it computes."""
    return policy.thresholds[stage] is None and not policy.counts_agreement and stage not in network.handing


class History:
    """What a policy knows of the samples that go on: in how many stages in a row they were given the same class.

    Attributes:
        sure: how sure the last stage was of each sample, [N]; zeros where nobody asked.
    """

    def __init__(self, policy: Policy, count: int, *, always: bool = False) -> None:
        """`always`: confidence is wanted of stages at which nothing stops, too."""
        self.policy, self.always = policy, always
        self.last: Array | None = None
        self.streak, self.sure = np.ones(count), np.zeros(count)

    def confidence(self, stage: int, answers: list[Array]) -> Array:
        """How sure a stage is, [N]; to be asked stage by stage."""
        self._count(stage, answers)
        return self.policy.of(stage, answers, self.streak)

    def _count(self, stage: int, answers: list[Array]) -> None:
        """In how many stages in a row each sample was given the same class, where the policy asks."""
        if self.policy.counts_agreement:
            check_classes(answers, stage)
            predicted = answers[0].argmax(axis=1)
            if self.last is not None:
                self.streak = np.where(predicted == self.last, self.streak + 1, 1.0)
            self.last = predicted

    def going(self, stage: int, answers: list[Array]) -> Array:
        """Which samples go on, [N]: the answer of the stage is not good enough."""
        threshold = self.policy.thresholds[stage]
        if threshold is None and not self.policy.counts_agreement and not self.always:
            return np.ones(len(answers[0]), bool)
        self._count(stage, answers)
        self.sure = self._sure(stage, answers, threshold)
        return np.ones(len(self.sure), bool) if threshold is None else self.sure < threshold

    def _sure(self, stage: int, answers: list[Array], threshold: float | None) -> Array:
        """How sure a stage is, on the right side of the threshold: the last bit is computed where one is near it."""
        if not self.policy.of_probabilities:
            return self.policy.of(stage, answers, self.streak)
        quick = self.policy.of(stage, answers, self.streak, QUICK)
        if threshold is None or bool((np.abs(quick - threshold) > NEAR).all()):
            return quick
        return self.policy.of(stage, answers, self.streak)

    def keep(self, going: Array) -> None:
        """Only these samples go on."""
        self.streak = self.streak[going]
        self.last = None if self.last is None else self.last[going]

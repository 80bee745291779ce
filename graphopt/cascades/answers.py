"""What every stage answers on data, whether a sample would stop before it or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.artifacts import calling
from graphopt.artifacts.staged import StagedArtifact
from graphopt.policies import Policy
from graphopt.policies.confidence import check_classes
from graphopt.policies.policy import array_of
from graphopt.policies.stages import Compute, History
from graphopt.utils.errors import InputError
from graphopt.utils.progress import track

Array = np.ndarray[Any, Any]
Score = Callable[[list[Array], Any], Any]
CHUNK = 128  # samples that are computed at once


@dataclass(frozen=True)
class Answers:
    """Of N samples.

    Attributes:
        inputs: flat, as the network takes them.
        stages: for each stage its answer, a list of arrays.
        labels: classes [N], or what `score` compares with; None: the last stage's answers stand for them.
        score: of each stage's answer, float64 [stages, N].
    """

    inputs: list[Array]
    stages: list[list[Array]]
    labels: Any
    score: Array

    def __len__(self) -> int:
        return len(self.inputs[0])

    @property
    def classes(self) -> Array:
        """The class of each sample: its label, or where there are none the last stage's answer, [N]."""
        found: Array = self.stages[-1][0].argmax(axis=1) if self.labels is None else self.labels
        return found

    def confidence(self, policy: Policy) -> Array:
        """Of each stage but the last, float64 [stages - 1, N]."""
        history = History(policy, len(self))
        return np.stack([history.confidence(k, outputs) for k, outputs in enumerate(self.stages[:-1])])

    def path(self, policy: Policy) -> Array:
        """The stage that each sample stops at, [N]."""
        path, sure = np.full(len(self), len(self.stages) - 1), self.confidence(policy)
        for stage in reversed(range(len(self.stages) - 1)):
            threshold = policy.thresholds[stage]
            if threshold is not None:
                path[sure[stage] >= threshold] = stage
        return path

    def mean_score(self, path: Array) -> float:
        """Where each sample stops at the stage of a path."""
        return float(self.score[path, np.arange(len(self))].mean())


def answers(
    artifact: StagedArtifact,
    inputs: Any,
    labels: Any = None,
    score: Score | None = None,
    compute: Sequence[Compute] | None = None,
) -> Answers:
    """Run all stages on all samples.

    Args:
        inputs: of all samples: a tensor or array, a tuple of them, or a dictionary by name.
        labels: classes, [N]; with `score` whatever that takes.
        score: from a stage's outputs, a list of arrays, and the labels to a number for each sample, more is better. None: 1 where
            the largest logit is the label's, else 0.
        compute: what each stage computes; None: the stages themselves.

    Raises:
        InputError: the inputs, labels or scores do not fit; or the outputs are no classes, and there is no score.
    """
    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(given), {})
    arrays = calling.arrays(artifact.manifest, args, kwargs)
    count = len(arrays[0])
    if not count or any(len(array) != count for array in arrays):
        raise InputError("give inputs of at least one sample, as many of each")
    run = [stage._run for stage in artifact.stages] if compute is None else compute
    chunks = [
        _chunk(artifact, run, [a[i : i + CHUNK] for a in arrays]) for i in track(range(0, count, CHUNK), "stages")
    ]
    stages = [
        [np.concatenate(parts) for parts in zip(*each, strict=True)] for each in map(list, zip(*chunks, strict=True))
    ]
    known = _labels(labels, count, stages) if score is None else labels
    return Answers(arrays, stages, known, np.stack([_scored(each, stages, known, score) for each in stages]))


def _chunk(artifact: StagedArtifact, compute: Sequence[Compute], inputs: list[Array]) -> list[list[Array]]:
    """The answers of all stages."""
    network, found = artifact.network, list[list[Array]]()
    held = {(-1, i): array for i, array in enumerate(inputs)}
    for number, run in enumerate(compute):
        outputs = run([held[source] for source in network.reads[number]])
        held |= {(number, j): array for j, array in enumerate(outputs)}
        found.append(outputs[: network.answers])
    return found


def _labels(labels: Any, count: int, stages: list[list[Array]]) -> Array | None:
    for number, each in enumerate(stages):
        check_classes(each, number)
    if labels is None:
        return None
    found = array_of(labels)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"labels are classes by number, [{count}], got {found.dtype} {list(found.shape)}")
    classes = stages[-1][0].shape[1]
    if not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise InputError(f"labels go from {found.min()} to {found.max()}, but there are {classes} classes")
    return found.astype(np.int64)


def _scored(outputs: list[Array], stages: list[list[Array]], labels: Any, score: Score | None) -> Array:
    if score is None:
        wanted = stages[-1][0].argmax(axis=1) if labels is None else labels
        return np.asarray(outputs[0].argmax(axis=1) == wanted, dtype=np.float64)
    found = np.asarray(score(outputs, labels), dtype=np.float64)
    if found.shape != (len(outputs[0]),) or not bool(np.isfinite(found).all()):
        raise InputError(
            f"score must give a finite number for each of {len(outputs[0])} samples, got {list(found.shape)}"
        )
    return found

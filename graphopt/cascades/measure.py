"""Accuracy, rates, time and calibration of a cascade on data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.staged import STAGES, StagedArtifact
from graphopt.cascades import timing
from graphopt.cascades.answers import Answers
from graphopt.cascades.report import CascadeReport, CurvePoint, StageFigures
from graphopt.ir.cost import host_cpu
from graphopt.policies import Policy
from graphopt.policies.calibration import calibration_error
from graphopt.policies.stages import skippable
from graphopt.policies.thresholds import Choice

Array = np.ndarray[Any, Any]


def measure(
    artifact: StagedArtifact, plain: Artifact, known: Answers, front: Sequence[Choice], points: int, *, classes: bool
) -> CascadeReport:
    """What the report says; `points`: of the curve. `classes`: answers are classes, so scores are shares of right ones."""
    policy, unit = artifact.policy, 100.0 if classes else 1.0
    path, macs = known.path(policy), artifact.manifest.options[STAGES].get("macs") or []
    counts = np.bincount(path, minlength=policy.stages) / len(path)
    chosen = _point(artifact, plain, known, policy, unit, macs)
    others = [policy.at(choice.thresholds) for choice in spread(front, points)]
    curve = [_point(artifact, plain, known, p, unit, macs) for p in others if p.thresholds != policy.thresholds]
    worst = timing.worst(artifact, plain, known)
    return CascadeReport(
        model=artifact.manifest.model,
        samples=len(known),
        score=_called(known, classes),
        confidence=policy.confidence if isinstance(policy.confidence, str) else "a function",
        chosen=chosen,
        curve=sorted([chosen, *curve], key=lambda point: point.ms),
        stages=[
            _stage(artifact, known, policy, n, float(counts[n]), path, unit, classes and known.labels is not None)
            for n in range(policy.stages)
        ],
        worst_ms=worst.ms,
        worst_ratio=worst.ratio,
        plain_ms=worst.plain_ms,
        plain_score=unit * float(known.score[-1].mean()),
        per_class=_per_class(known, path, policy.stages, artifact.labels) if classes else {},
        threads=int(getattr(plain, "threads", 1)),
        host=host_cpu(),
    )


def _called(known: Answers, classes: bool) -> str:
    """What the scores are."""
    if not classes:
        return "score"
    return "accuracy, %" if known.labels is not None else "same class as the last stage, %"


def spread(front: Sequence[Choice], points: int) -> list[Choice]:
    """So many of a front, at even steps of its cost, both ends among them."""
    if len(front) <= points:
        return list(front)
    wanted = np.linspace(front[0].cost, front[-1].cost, points)
    places = {int(np.argmin([abs(choice.cost - cost) for choice in front])) for cost in wanted}
    return [front[place] for place in sorted(places)]


def _point(
    artifact: StagedArtifact, plain: Artifact, known: Answers, policy: Policy, unit: float, macs: Sequence[int | None]
) -> CurvePoint:
    path = known.path(policy)
    taken = timing.expected(artifact, plain, known, policy)
    rates = np.bincount(path, minlength=policy.stages) / len(path)
    return CurvePoint(
        thresholds=list(policy.thresholds),
        rates=[float(rate) for rate in rates],
        score=unit * known.mean_score(path),
        ms=taken.ms,
        ratio=taken.ratio,
        macs=_macs(artifact, policy, rates.tolist(), macs),
    )


def _macs(artifact: StagedArtifact, policy: Policy, rates: Sequence[float], macs: Sequence[int | None]) -> float | None:
    """The mean of a sample, of the stages that it runs; None where a stage does not say."""
    total, left = 0.0, 1.0
    for stage, rate in enumerate(rates):
        work = macs[stage] if stage < len(macs) else None
        if work is None:
            return None
        last = stage == policy.stages - 1
        total += 0.0 if not last and skippable(artifact.network, policy, stage) else left * work
        left -= rate
    return total


def _stage(
    artifact: StagedArtifact, known: Answers, policy: Policy, number: int, rate: float, path: Array,
    unit: float, labelled: bool,
) -> StageFigures:  # fmt: skip
    stage, here = artifact.stages[number].manifest, path == number
    temperature = policy.temperatures[number] if policy.temperatures else 1.0
    logits = known.stages[number][0]
    return StageFigures(
        model=stage.model,
        runtime=stage.runtime,
        rate=rate,
        threshold=policy.thresholds[number] if number < len(policy.thresholds) else None,
        alone=unit * float(known.score[number].mean()),
        answered=unit * float(known.score[number, here].mean()) if here.any() else None,
        temperature=temperature,
        ece_before=100 * calibration_error(logits, known.classes) if labelled else None,
        ece_after=100 * calibration_error(logits, known.classes, temperature) if labelled else None,
    )


def _per_class(known: Answers, path: Array, stages: int, labels: Sequence[str]) -> dict[str, list[float]]:
    """Of each class the share of its samples that each stage answers."""
    found = {}
    for each in np.unique(known.classes):
        here = path[known.classes == each]
        name = labels[int(each)] if int(each) < len(labels) else str(int(each))
        found[name] = [float(share) for share in np.bincount(here, minlength=stages) / len(here)]
    return found

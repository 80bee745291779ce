"""One network made and judged: a function of plain data and of what the caller gave, so that it can run in another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.compiler.search.recipe import Recipe
from graphopt.evaluation.scores import Evaluate, last_score
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.targets import Target


@dataclass(frozen=True)
class Candidate:
    """What to make, from what, and where to put it.

    Attributes:
        graph: the file of the captured original. folder: for the artifact.
        calibration, evaluate, preprocessing, class_labels: as the caller gave them to `search`.
        original_score: what `evaluate` said of the float original.
    """

    graph: Path
    target: Target
    recipe: Recipe
    folder: Path
    calibration: Any
    evaluate: Evaluate | None
    original_score: float | None
    preprocessing: Any
    class_labels: Any
    threads: int


@dataclass(frozen=True)
class Judged:
    """What is known of an artifact; see `Point`."""

    macs: int
    bytes: int
    score: float | None
    sqnr_db: float | None
    error: str


def make(candidate: Candidate) -> Judged:
    """Make it, save the artifact, and say how well it answers; its time is not measured here, where others may be at work."""
    from graphopt.compiler.optimize import optimize

    result = optimize(
        Graph.load(candidate.graph),
        target=candidate.target,
        calibration=candidate.calibration,
        passes=candidate.recipe,
        preprocessing=candidate.preprocessing,
        class_labels=candidate.class_labels,
        threads=candidate.threads,
        measure=False,
    )
    report, artifact = result.report, result.artifact
    report.accuracy_before = candidate.original_score
    if candidate.evaluate is not None:
        report.accuracy_after = last_score(candidate.evaluate, artifact, report)
    artifact.manifest.report = report.to_dict()
    artifact.save(candidate.folder)
    error = report.missing.get("accuracy", "")
    return Judged(cost.macs(result.graph), artifact.size_bytes, report.accuracy_after, report.sqnr_db, error)

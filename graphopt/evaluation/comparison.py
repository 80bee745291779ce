"""Two artifacts of one model side by side: size, time, answers, and where the time goes by layer.

    comparison = graphopt.compare(int8, float32, calibration=images)
    print(comparison)

Calls are timed in turn in one process. Answers are compared on given inputs, the second artifact's being the reference; without
inputs nothing is said of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import portable
from graphopt.data.batches import Input, Signature
from graphopt.data.calibration import Calibration
from graphopt.evaluation.fidelity import Fidelity
from graphopt.ir import cost
from graphopt.utils.errors import InputError
from graphopt.utils.printed import Printed
from graphopt.utils.quantities import decibel, ratio, size
from graphopt.utils.tables import Block, Column, Line, Table

SHOWN = 20  # layers that are printed


@dataclass(frozen=True)
class Side:
    """What is known of one artifact.

    Attributes:
        call_ms: median milliseconds of one call; None where it does not run here.
        layers: milliseconds by layer; empty where its runtime does not say. accuracy: by the caller's function.
    """

    model: str
    target: str
    runtime: str
    size_bytes: int
    call_ms: float | None
    layers: dict[str, float]
    accuracy: float | None = None


@dataclass(frozen=True)
class Comparison(Printed):
    """See the head of this file.

    Attributes:
        first, second: the artifacts.
        speedup: of the first over the second, the median of ratios taken in turn; None where either does not run here.
        agreement: the share of inputs on which both predict the same class. sqnr_db: of the first one's outputs, by name, with
            the second's as reference. samples: that both were taken on; 0 where none were given.
    """

    first: Side
    second: Side
    speedup: float | None
    agreement: float | None
    sqnr_db: dict[str, float]
    samples: int

    def blocks(self) -> list[Block]:
        sides = (self.first, self.second)
        smaller = ratio(self.second.size_bytes / max(self.first.size_bytes, 1), "smaller", "larger")
        faster = "" if self.speedup is None else ratio(self.speedup, "faster", "slower")
        rows = [
            ["target", *(f"{side.target}, {side.runtime}" for side in sides), ""],
            ["size", *(size(side.size_bytes) for side in sides), smaller],
            ["call", *(_ms(side.call_ms) for side in sides), faster],
        ]
        if self.first.accuracy is not None and self.second.accuracy is not None:
            moved = self.first.accuracy - self.second.accuracy
            rows.append(["accuracy", f"{self.first.accuracy:.4f}", f"{self.second.accuracy:.4f}", f"{moved:+.4f}"])
        found: list[Block] = [
            Line(f"{self.first.model} beside {self.second.model}", "title"),
            Table(
                [Column(""), Column("first", number=True), Column("second", number=True), Column("the first is")], rows
            ),
        ]
        if self.samples:
            shown = ", ".join(f"{name} {decibel(db)}" for name, db in self.sqnr_db.items())
            agreement = "" if self.agreement is None else f", {self.agreement:.1%} same prediction"
            found.append(Line(f"answers on {self.samples} samples: {shown}{agreement}"))
        return found + self._by_layer()

    def _by_layer(self) -> list[Block]:
        """The layers of either, by the time that they differ by."""
        ours, theirs = self.first.layers, self.second.layers
        names = sorted({**ours, **theirs}, key=lambda name: -abs(ours.get(name, 0.0) - theirs.get(name, 0.0)))
        if not names:
            return []
        rows = [[n or "(no layer)", _layer(ours.get(n)), _layer(theirs.get(n))] for n in names[:SHOWN]]
        columns = [Column("layer"), Column("first, ms", number=True), Column("second, ms", number=True)]
        return [Table(columns, rows), *([Line(f"and {len(names) - SHOWN} more")] if len(names) > SHOWN else [])]

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = portable(asdict(self))
        return plain


def compare(
    first: Artifact,
    second: Artifact,
    *,
    calibration: Any = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    runs: int = 30,
) -> Comparison:
    """Put two artifacts side by side.

    Args:
        first, second: that take the same inputs.
        calibration: inputs to compare answers on, as `graphopt.optimize` takes them. None: answers are not compared.
        evaluate: takes what is called like the model, and returns its accuracy.
        runs: calls of each that are timed.

    Raises:
        InputError: they take different inputs, or the inputs do not fit.
    """
    ours, theirs = ([(s.name, s.dtype, s.shape) for s in a.manifest.inputs] for a in (first, second))
    if ours != theirs:
        takes = [", ".join(map(str, a.manifest.inputs)) for a in (first, second)]
        raise InputError(f"the artifacts take different inputs: {takes[0]} and {takes[1]}; compare two of one model")
    times, speedup = _times(first, second, runs)
    sides = []
    for artifact, ms in zip((first, second), times, strict=True):
        manifest = artifact.manifest
        accuracy = None if evaluate is None or artifact.refusal else float(evaluate(artifact))
        target = str(manifest.target.get("name"))
        side = Side(manifest.model, target, manifest.runtime, artifact.size_bytes, ms, _layers(artifact), accuracy)
        sides.append(side)
    answers = (None, {}, 0) if calibration is None else _answers(first, second, calibration)
    return Comparison(sides[0], sides[1], speedup, *answers)


def _times(first: Artifact, second: Artifact, runs: int) -> tuple[list[float | None], float | None]:
    """Milliseconds of a call, taken in turn."""
    here = [artifact for artifact in (first, second) if not artifact.refusal]
    inputs = [artifact.zeros() for artifact in here]
    calls = {str(n): lambda a=a, x=x: a.milliseconds(**x) for n, (a, x) in enumerate(zip(here, inputs, strict=True))}
    taken = cost.timings(calls, repeats=runs, clocked=True)
    medians = iter([taken.median(name) for name in calls])
    times = [None if artifact.refusal else next(medians) for artifact in (first, second)]
    return times, taken.speedup("1", "0") if len(calls) == 2 else None


def _layers(artifact: Artifact) -> dict[str, float]:
    try:
        return artifact.profile(**artifact.zeros(), runs=20).layers()
    except InputError:  # its runtime says nothing of its kernels
        return {}


def _answers(first: Artifact, second: Artifact, given: Any) -> tuple[float | None, dict[str, float], int]:
    """Agreement, SQNR by output, and the number of samples."""
    data, outputs = Calibration(given, _signature(second)), second.manifest.outputs
    floating = [n for n, spec in enumerate(outputs) if spec.dtype.startswith("float")]
    fidelity, same, samples = Fidelity([outputs[n].name for n in floating]), 0.0, 0
    for batch in data:
        inputs = dict(zip((spec.name for spec in second.manifest.inputs), batch, strict=True))
        ours, theirs = ([t for t in pytree.tree_leaves(a(**inputs)) if isinstance(t, Tensor)] for a in (first, second))
        fidelity.update([theirs[n] for n in floating], [ours[n] for n in floating])
        same += cost.agreement(theirs, ours) * len(batch[0])
        samples += len(batch[0])
    return None if math.isnan(same) else same / samples, fidelity.outputs, samples


def _signature(artifact: Artifact) -> Signature:
    """What an artifact takes, for reading data."""
    shapes = [tuple(x.shape) for x in artifact.zeros().values()]
    specs = artifact.manifest.inputs
    free = [bool(spec.shape) and spec.shape[0] is None for spec in specs]
    found = [
        Input(spec.name, (spec.name,), shape, getattr(torch, spec.dtype), batched, spec.sizes)
        for spec, shape, batched in zip(specs, shapes, free, strict=True)
    ]
    return Signature(tuple(found), any(free))


def _ms(value: float | None) -> str:
    return "does not run here" if value is None else f"{value:.3g} ms"


def _layer(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

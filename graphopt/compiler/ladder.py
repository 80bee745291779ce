"""Climb until the accuracy is good enough: ways to quantize in the order of what they cost, each judged as an artifact.

    nearest     the target's recipe: calibrated ranges, every weight its nearest code, corrected biases
    gptq        codes of weights chosen on data, layer by layer in closed form
    adaround    from there by gradients, block by block
    layers      the layers that hurt most in more bits: 8 first, where they have fewer, then float

The first attempt that keeps the accuracy within the budget is taken; if none does, the best. Of the layers, twice as many are
tried each time, and then as few as do; they stand on the best of the attempts before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Attempt, Report
from graphopt.compiler.options import ROUNDINGS, Rounding
from graphopt.compiler.recipes import FEW_BITS
from graphopt.evaluation.analysis import LayerSensitivity
from graphopt.evaluation.sensitivity import analyze
from graphopt.formats import Format, with_bits
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Pass
from graphopt.passes.quantization import LayerFormat
from graphopt.passmanager.runner import run
from graphopt.passmanager.step import Step
from graphopt.targets import Formats as TargetFormats
from graphopt.utils.errors import GraphoptError

LOG = logging.getLogger(__name__)
EIGHT = 8  # bits that a layer with fewer than `FEW_BITS` gets back before it stays in float

Formats = Mapping[str, LayerFormat | None]


class Lowered(NamedTuple):
    """What runs: the deployed form of a graph, its artifact, and what answers for that on this machine."""

    deployed: Graph
    artifact: Artifact
    answers: Callable[..., Any]


@dataclass(frozen=True)
class Tried:
    """One way to quantize, tried: the simulated graph, what it is lowered to, what was done, and the score."""

    graph: Graph
    lowered: Lowered
    steps: list[Step]
    accuracy: float
    rounding: Rounding


@dataclass
class Ladder:
    """Attempts from one float graph, cleaned for the target.

    Attributes:
        start: the float graph; it is not changed.
        own: the number formats of the target.
        data: calibration batches, gone through several times.
        quantized: the passes that quantize with a way of rounding and formats by layer name.
        judge: lowers a simulated graph and gives the accuracy of the artifact.
        least: the accuracy that is good enough.
        reference: the outputs of the original on its example, which the steps of an attempt compare with.
        formats, dump: as in `graphopt.optimize`; every attempt has a folder of its own in `dump`.
        attempts: what was tried, in order.
        timed: a context around each attempt, by its name.
        clock: the milliseconds of a call of what an attempt was lowered to; None where they are not measured.
    """

    start: Graph
    own: TargetFormats
    data: Iterable[list[Tensor]]
    quantized: Callable[[Rounding, Formats], list[Pass]]
    judge: Callable[[Graph], tuple[Lowered, float]]
    least: float
    reference: list[Tensor]
    dump: str | Path | None = None
    formats: Formats = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    timed: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    clock: Callable[[Lowered], float | None] = lambda lowered: None
    best: Tried | None = None

    def climb(self, report: Report) -> Tried:
        """The first attempt that is good enough, or the best one; the report tells what was tried."""
        for rounding in ROUNDINGS:
            if self.reaches(rounding, {}, f"{rounding} rounding"):
                break
        assert self.best is not None
        if self.best.accuracy < self.least:
            self.lift_layers(self.best)
        best = self.best
        report.steps += best.steps
        report.attempts, report.accuracy_after = self.attempts, best.accuracy
        if best.accuracy < self.least:
            report.warnings.append(
                f"nothing that was tried keeps the accuracy at {self.least:.4g} or above; this is the best, {best.accuracy:.4g}"
            )
        return best

    def reaches(self, rounding: Rounding, lifted: Formats, name: str) -> bool:
        """Quantize one way, and remember it if it is the best so far; whether it is good enough."""
        with self.timed(name):
            return self._reaches(rounding, lifted, name)

    def _reaches(self, rounding: Rounding, lifted: Formats, name: str) -> bool:
        began, graph = time.perf_counter(), self.start.clone(share_weights=True)
        formats = {**lifted, **{name: chosen for name, chosen in self.formats.items() if name not in lifted}}
        folder = None if self.dump is None else Path(self.dump) / f"attempt_{len(self.attempts):02}"
        try:
            steps = run(self.quantized(rounding, formats), graph, dump=folder, reference=self.reference)
            lowered, accuracy = self.judge(graph)
        except GraphoptError as error:
            if not self.attempts:
                raise  # the plain recipe: nothing was done yet that could be lost
            self.attempts.append(Attempt(name, None, time.perf_counter() - began, False, str(error)))
            LOG.info("%s could not be judged: %s", name, error)
            return False
        met = accuracy >= self.least
        took = time.perf_counter() - began
        size, ms = cost.weight_bytes(lowered.deployed), self.clock(lowered)
        self.attempts.append(Attempt(name, accuracy, took, met, weight_bytes=size, milliseconds=ms))
        LOG.info("%s: accuracy %.4f, at least %.4f is wanted", name, accuracy, self.least)
        better = self.best is None or accuracy > self.best.accuracy
        if met or better:
            self.best = Tried(graph, lowered, steps, accuracy, rounding)
        return met

    # ---- Layers in more bits ----------------------------------------------------------------------------------------

    def lift_layers(self, base: Tried) -> None:
        """Lift as few of the layers that hurt most as suffice; if all but one do not, whatever was best stays."""
        lifts = self.lifts(base.graph)
        few, many, most = 0, 1, len(lifts) - 1
        while few < most and not self.lift(base.rounding, lifts[:many]):
            few, many = many, min(2 * many, most)
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if self.lift(base.rounding, lifts[:middle]) else (middle, many)

    def lift(self, rounding: Rounding, lifts: list[tuple[str, LayerFormat | None]]) -> bool:
        formats = dict(lifts)  # a layer that comes twice stays in float
        floats = [name for name, chosen in formats.items() if chosen is None]
        eights = [name for name in formats if name not in floats]
        parts = [f"{len(n)} in {what} ({', '.join(n[:3])}{', ...' if len(n) > 3 else ''})"
                 for n, what in ((eights, f"{EIGHT} bits"), (floats, "float")) if n]  # fmt: skip
        return self.reaches(rounding, {escape(name): chosen for name, chosen in formats.items()}, ", ".join(parts))

    def lifts(self, graph: Graph) -> list[tuple[str, LayerFormat | None]]:
        """What to give back, most needed first: 8 bits to layers with fewer, then float."""
        ranked = [layer for layer in analyze(graph, self.data).ranked() if layer.weight_bits is not None]
        formats = (self.own.weights, self.own.activations)
        eight = LayerFormat(*(with_bits(f, EIGHT) if isinstance(f, Format) else f for f in formats))
        few: list[tuple[str, LayerFormat | None]] = [(layer.name, eight) for layer in ranked if bits(layer) < FEW_BITS]
        return few + [(layer.name, None) for layer in ranked]


def bits(layer: LayerSensitivity) -> int:
    """The fewest that its weight or its result have."""
    return min(b for b in (layer.weight_bits, layer.activation_bits, EIGHT) if b is not None)

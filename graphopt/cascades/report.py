"""What was measured of a cascade: accuracy against expected time, who answers what, the worst case, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.artifacts.report import portable
from graphopt.utils.printed import Printed
from graphopt.utils.quantities import count, ratio
from graphopt.utils.tables import Block, Column, Line, Table, numbers


@dataclass(frozen=True)
class CurvePoint:
    """One choice of thresholds.

    Attributes:
        thresholds: of each stage but the last; None: nothing stops there.
        rates: the share of samples that each stage answers.
        score: accuracy in percent, or the mean of the caller's score.
        ms: expected milliseconds of a sample alone, as `graphopt.cascades.timing` measures them.
        ratio: of that over the plain network's, in turn.
        macs: mean multiply-accumulates of a sample; None where a stage's are not known.
    """

    thresholds: Sequence[float | None]
    rates: Sequence[float]
    score: float
    ms: float
    ratio: float
    macs: float | None


@dataclass(frozen=True)
class StageFigures:
    """One stage.

    Attributes:
        rate: the share of samples that it answers. threshold: from which confidence on; None for the last one.
        alone: the score where it answers everything. answered: on the samples that it does answer; None where there are none.
        temperature: that its logits are divided by.
        ece_before, ece_after: expected calibration error in percent, without the temperature and with it.
    """

    model: str
    runtime: str
    rate: float
    threshold: float | None
    alone: float
    answered: float | None
    temperature: float
    ece_before: float | None
    ece_after: float | None


@dataclass(frozen=True)
class CascadeReport(Printed):
    """See the head of this file.

    Attributes:
        samples: that all was measured on. score: what the scores are.
        chosen: the thresholds that the artifact has. curve: they and others, the fastest first.
        worst_ms, worst_ratio: of a sample that goes through all stages, and over the plain network in turn.
        plain_ms, plain_score: of the plain network by the clock, and of the last stage alone.
        per_class: class -> the share of its samples that each stage answers.
    """

    model: str
    samples: int
    score: str
    confidence: str
    chosen: CurvePoint
    curve: list[CurvePoint]
    stages: list[StageFigures]
    worst_ms: float
    worst_ratio: float
    plain_ms: float
    plain_score: float
    per_class: dict[str, list[float]]
    threads: int
    host: str

    def blocks(self) -> list[Block]:
        return [
            Line(f"{self.model}: computes as much as a sample needs", "title"),
            Line(self.summary()),
            Line(self.measured_on()),
            self.stage_table(),
            Line("Expected time, by thresholds:"),
            self.curve_table(),
        ]  # fmt: skip

    def summary(self) -> str:
        """Two sentences: what was gained and what it cost; the worst case."""
        faster = ratio(1 / self.chosen.ratio, "faster", "slower")
        return (
            f"{faster} than the plain network in expectation ({self.chosen.ms:.3g} ms against {self.plain_ms:.3g} ms), "
            f"{self.score} {self.chosen.score:.2f} against {self.plain_score:.2f}. A sample that needs all stages takes "
            f"{self.worst_ratio:.2f} times as long as the plain network ({self.worst_ms:.3g} ms)."
        )

    def measured_on(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"measured on {self.samples} samples, one at a time, {threads}, {self.host}"

    def stage_table(self) -> Table:
        names = ["answers", "threshold", "alone", "on what it answers", "temperature", "ECE before, %", "ECE after, %"]
        rows = [
            [str(n), f"{stage.model}, {stage.runtime}", f"{stage.rate:.1%}", _figure(stage.threshold, 4),
             _figure(stage.alone, 2), _figure(stage.answered, 2), _figure(stage.temperature, 2),
             _figure(stage.ece_before, 2), _figure(stage.ece_after, 2)]
            for n, stage in enumerate(self.stages)
        ]  # fmt: skip
        return Table([Column("stage"), Column("what"), *numbers(*names)], rows)

    def curve_table(self) -> Table:
        names = [self.score, "expected ms", "of the plain network", "MACs"]
        rows = []
        for point in self.curve:
            thresholds = ", ".join("never" if t is None else f"{t:.4f}" for t in point.thresholds)
            rates = " / ".join(f"{rate:.0%}" for rate in point.rates)
            work = "" if point.macs is None else count(round(point.macs))
            chosen = " (chosen)" if point is self.chosen else ""
            figures = [f"{point.score:.2f}", f"{point.ms:.3g}", f"{point.ratio:.2f}", work]
            rows.append([thresholds + chosen, rates, *figures])
        return Table([Column("thresholds"), Column("answered by stage"), *numbers(*names)], rows)

    def page(self) -> str:
        from graphopt.cascades.report_page import page  # which reads reports

        return page(self)

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = portable(asdict(self))
        return plain


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

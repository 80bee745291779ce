"""The report of an optimization: what every step changed and cost, and what the result measures.

A number stands here only where it was measured; where it was not, the reason stands in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Protocol

from graphopt.artifacts.network import WORDS, Call, Distribution
from graphopt.passmanager.step import Step
from graphopt.utils.errors import InputError
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block
from graphopt.utils.timings import Stage, Timings


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one call on the example, before and after, taken in turn in one process.

    `speedup` is the median of the ratios taken round by round, so it need not be the quotient of the two medians.
    """

    before_ms: float
    after_ms: float
    speedup: float
    before: str
    after: str
    threads: int
    host: str


@dataclass(frozen=True)
class FloatOperator:
    """A call that stayed in floating point: where, which operator, why, and its multiply-accumulates."""

    site: str
    operator: str
    reason: str
    macs: int = 0


@dataclass(frozen=True)
class Attempt:
    """One way that was tried to keep the accuracy: its score (None where it could not be judged, `note` says why), how long it
    took, evaluation included, and whether it was good enough; bytes of its weights, and milliseconds of a call where measured.
    """

    name: str
    accuracy: float | None
    seconds: float
    met: bool
    note: str = ""
    weight_bytes: int | None = None
    milliseconds: float | None = None


class Finding(Protocol):
    """Something that was found out about the result later, such as a `Profile` or an `Analysis`."""

    def annotate(self, report: Report) -> None:
        """Write into the report what was found."""


@dataclass
class Report(Printed):
    """Everything there is to say about one optimization. Sizes in bytes, shares and accuracy as given (0 to 1).

    Attributes:
        model, target: what was optimized, for what.
        notes: remarks of the capture and the calibration, for instance why the batch is fixed.
        warnings: what the user should know before relying on the result.
        original: the graph as it was captured, as a `Step` without changes.
        steps: one per pass.
        timings: where the time of the optimization went, by stage; the parts of the stages that run passes are passes.
        attempts: what was tried to keep the accuracy, in order, where a largest drop was given.
        latency, accuracy_before, accuracy_after, size_before, size_after: measured, or None.
        agreement: the share of inputs on which float original and result predict the same class.
        sqnr_db: outputs of the deployed result against the float original.
        integer_macs: the share of multiply-accumulates computed in integer.
        float16_macs: the share of multiply-accumulates on activations in float16.
        weight_only_macs: the shares of multiply-accumulates whose weights alone are of few bits, by bits.
        float_operators: what stayed in floating point, and why.
        network: the result call by call: bits, arithmetic, work; with time and damage once they are included.
        distributions: of quantized activations and weights, once an analysis is included.
        options: what `optimize` was asked for, as plain data.
        versions: of graphopt and of what the result depends on.
        seed: of torch's random numbers, where they were last begun anew.
        missing: for what was not measured, the reason; keys as in `report_text.REASONS`.
    """

    model: str
    target: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    original: Step | None = None
    steps: list[Step] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    attempts: list[Attempt] = field(default_factory=list)
    latency: Latency | None = None
    size_before: int | None = None
    size_after: int | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    integer_macs: float | None = None
    float16_macs: float = 0.0
    weight_only_macs: dict[int, float] = field(default_factory=dict)
    float_operators: list[FloatOperator] = field(default_factory=list)
    network: list[Call] = field(default_factory=list)
    distributions: list[Distribution] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def include(self, *findings: Finding) -> Report:
        """Add what was measured later, for the page and the JSON; returns the report itself.

        report.include(result.artifact.profile(images), graphopt.analyze(result.graph, images)).save("report.html")
        """
        for finding in findings:
            finding.annotate(self)
        return self

    def blocks(self) -> list[Block]:
        from graphopt.artifacts.report_text import blocks  # which reads reports

        return blocks(self)

    def page(self) -> str:
        from graphopt.artifacts.report_page import page  # which reads reports

        return page(self)

    def results(self) -> dict[str, str]:
        """The measured results in words, by name, in the order they are shown."""
        from graphopt.artifacts.report_text import results

        return results(self)

    # ---- Keeping ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Infinities and NaN, which JSON lacks, become the strings "inf", "-inf" and "nan"."""
        plain: dict[str, Any] = portable(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_dict` described.

        Raises:
            InputError: a field is unknown, missing or of another kind.
        """
        values = _fields(cls, data)
        values["steps"] = [_step(s) for s in values.get("steps", [])]
        values["attempts"] = [Attempt(**_fields(Attempt, a)) for a in values.get("attempts", [])]
        values["timings"] = _timings(values.get("timings", {}))
        values["original"] = _step(values["original"]) if values.get("original") else None
        values["latency"] = Latency(**_fields(Latency, values["latency"])) if values.get("latency") else None
        values["float_operators"] = [
            FloatOperator(**_fields(FloatOperator, f)) for f in values.get("float_operators", [])
        ]
        values["network"] = [_call(*each) for each in enumerate(values.get("network", []))]
        values["distributions"] = [Distribution(**_fields(Distribution, d)) for d in values.get("distributions", [])]
        values["weight_only_macs"] = {int(bits): s for bits, s in values.get("weight_only_macs", {}).items()}
        return cls(**values)


def _timings(data: Mapping[str, Any]) -> Timings:
    stages = [Stage(**_fields(Stage, stage)) for stage in _fields(Timings, data).get("stages", [])]
    for stage in stages:
        stage.parts = [(str(name), float(seconds)) for name, seconds in stage.parts]
    return Timings(stages)


def _call(number: int, data: Mapping[str, Any]) -> Call:
    values = _fields(Call, data)
    call = Call(**{**values, "reads": tuple(values.get("reads", ())), "shape": tuple(values.get("shape", ()))})
    words = (call.name, call.operator, call.value, call.reason)
    if not all(isinstance(word, str) for word in words) or call.arithmetic not in WORDS:
        raise InputError(f"no call of a network is like {words}; the report was altered")
    if not all(type(read) is int and 0 <= read < number for read in call.reads):
        raise InputError(f"call {number}, {call.name!r}, reads {call.reads}; it can read calls before it alone")
    return call


def _step(data: Mapping[str, Any]) -> Step:
    values = _fields(Step, data)
    values["changes"] = [(str(site), str(what)) for site, what in values.get("changes", [])]
    return Step(**values)


def _fields(kind: Any, data: Any) -> dict[str, Any]:
    """The entries of `data` that make a `kind`, strings that stand for infinities undone."""
    known = {f.name: str(f.type) for f in fields(kind)}
    if not isinstance(data, Mapping) or not set(data) <= set(known):
        unknown = ", ".join(sorted(set(data) - set(known))) if isinstance(data, Mapping) else type(data).__name__
        raise InputError(
            f"a {kind.__name__} cannot hold {unknown}; the report was altered or written by another version"
        )
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if lacking := sorted(required - set(data)):
        raise InputError(f"a {kind.__name__} lacks {', '.join(lacking)}; the report was altered or cut short")
    return {k: float(v) if isinstance(v, str) and known[k].startswith("float") else v for k, v in data.items()}


def portable(value: Any) -> Any:
    """Plain data as JSON can hold it: infinities and NaN as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: portable(v) for k, v in value.items()}
    return [portable(v) for v in value] if isinstance(value, (list, tuple)) else value

"""The report of an optimization: what every step changed and cost, and what the result measures.

A number stands here only where it was measured; where it was not, the reason stands in its place.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphopt.utils.errors import InputError
from graphopt.utils.files import write_atomically

T = TypeVar("T")

# What a report can lack, and why it lacks it unless the maker of the report knows better.
REASONS = {
    "latency": "it was not asked for",
    "accuracy": "no evaluate function was given",
    "agreement": "no calibration data was given",
    "size": "nothing was lowered",
    "integer_macs": "nothing was quantized",
}


@dataclass(frozen=True)
class Step:
    """One pass: its name, its options as text, its changes as (site, what), and the graph after it.

    `sqnr_db` compares the outputs on the example with those of the float original; None where that was not done. `short` tells
    what was asked for and is out of reach.
    """

    name: str
    options: str
    changes: Sequence[tuple[str, str]]
    seconds: float
    parameters: int
    macs: int
    weight_bytes: int
    sqnr_db: float | None = None
    short: list[str] = field(default_factory=list)


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
    took, evaluation included, and whether it was good enough.
    """

    name: str
    accuracy: float | None
    seconds: float
    met: bool
    note: str = ""


@dataclass
class Report:
    """Everything there is to say about one optimization. Sizes in bytes, shares and accuracy as given (0 to 1).

    Attributes:
        model, target: what was optimized, for what.
        notes: remarks of the capture and the calibration, for instance why the batch is fixed.
        warnings: what the user should know before relying on the result.
        original: the graph as it was captured, as a `Step` without changes.
        steps: one per pass.
        attempts: what was tried to keep the accuracy, in order, where a largest drop was given.
        latency, accuracy_before, accuracy_after, size_before, size_after: measured, or None.
        agreement: the share of inputs on which float original and result predict the same class.
        sqnr_db: outputs of the deployed result against the float original.
        integer_macs: the share of multiply-accumulates computed in integer.
        half_macs: the share of multiply-accumulates on values in float16.
        weight_only_macs: the shares of multiply-accumulates whose weights alone are of few bits, by bits.
        float_operators: what stayed in floating point, and why.
        missing: for what was not measured, the reason; keys as in `REASONS`.
    """

    model: str
    target: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    original: Step | None = None
    steps: list[Step] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    latency: Latency | None = None
    size_before: int | None = None
    size_after: int | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    integer_macs: float | None = None
    half_macs: float = 0.0
    weight_only_macs: dict[int, float] = field(default_factory=dict)
    float_operators: list[FloatOperator] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    # ---- Showing ----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return plain(self._render(), WIDTH)

    def print(self) -> None:
        """Show the report: in colour on a terminal, as plain text in a pipe."""
        show(self._render(), WIDTH)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [Text(f"{self.model} for {self.target}", style="bold")]
        if self.original or self.steps:
            parts.append(self._steps())
        if self.attempts:
            parts.append(self._attempts())
        parts.append(self._results())
        parts += [Text(f"note: {note}") for note in self.notes]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        return Group(*parts)

    def _steps(self) -> Table:
        table = Table(box=SIMPLE, pad_edge=False)
        table.add_column("step", overflow="fold")
        for name in ("changes", "seconds", "parameters", "MACs", "weights", "SQNR"):
            table.add_column(name, justify="right", no_wrap=True)
        for step in ([self.original] if self.original else []) + self.steps:
            first = step is self.original
            table.add_row(
                step.name,
                "" if first else str(len(step.changes)),
                f"{step.seconds:.1f}",
                count(step.parameters),
                count(step.macs),
                size(step.weight_bytes),
                "" if first else decibel(step.sqnr_db),
            )
        return table

    def _attempts(self) -> Table:
        table = Table(box=SIMPLE, pad_edge=False)
        table.add_column("tried", overflow="fold")
        for name in ("seconds", "accuracy", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for tried in self.attempts:
            moved = None not in (tried.accuracy, self.accuracy_before)
            table.add_row(
                tried.name,
                f"{tried.seconds:.1f}",
                "-" if tried.accuracy is None else f"{tried.accuracy:.4f}",
                f"{tried.accuracy - self.accuracy_before:+.4f}" if moved else "-",  # type: ignore[operator]
                tried.note or ("good enough" if tried.met else ""),
            )
        return table

    def _results(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in self.results().items():
            table.add_row(name, Text(value))
        return table

    def results(self) -> dict[str, str]:
        """The measured results in words, by name, in the order they are shown."""
        out = {"latency": self._latency(), "file size": self._size(), "accuracy": self._accuracy()}
        out["agreement"] = self._or_missing("agreement", self.agreement, lambda a: f"{a:.1%} same prediction as float")
        if self.sqnr_db is not None:
            out["output SQNR"] = decibel(self.sqnr_db)
        if self.half_macs:
            out["float16"] = f"{self.half_macs:.1%} of MACs"
        if self.integer_macs or not self.half_macs:
            out["integer"] = self._or_missing("integer_macs", self.integer_macs, lambda s: f"{s:.1%} of MACs")
        if self.weight_only_macs:
            shares = sorted(self.weight_only_macs.items())
            out["weight-only"] = ", ".join(f"{share:.1%} of MACs with {bits}-bit weights" for bits, share in shares)
        if self.float_operators:
            out["stays float"] = "\n".join(self._floats())
        return out

    def _or_missing(self, key: str, value: T | None, show: Any) -> str:
        if value is None:
            return f"not measured: {self.missing.get(key, REASONS[key])}"
        return str(show(value))

    def _latency(self) -> str:
        def show(t: Latency) -> str:
            threads = f"{t.threads} thread{'s' * (t.threads != 1)}"
            times = f"{t.before_ms:.3g} ms ({t.before}) -> {t.after_ms:.3g} ms ({t.after})"
            return f"{times}, {ratio(t.speedup, 'faster', 'slower')}\nmedians, {threads}, {t.host}"

        return self._or_missing("latency", self.latency, show)

    def _size(self) -> str:
        if self.size_before is None or self.size_after is None:
            known = next((s for s in (self.size_after, self.size_before) if s is not None), None)
            return self._or_missing("size", known, size)
        smaller = ratio(self.size_before / max(self.size_after, 1), "smaller", "larger")
        return f"{size(self.size_before)} -> {size(self.size_after)}, {smaller}"

    def _accuracy(self) -> str:
        if self.accuracy_before is None or self.accuracy_after is None:
            return self._or_missing("accuracy", None, str)
        moved = self.accuracy_after - self.accuracy_before
        return f"{self.accuracy_before:.4f} -> {self.accuracy_after:.4f} ({moved:+.4f})"

    def _floats(self) -> list[str]:
        groups = Counter((f.operator, f.reason) for f in self.float_operators)
        lines = []
        for (operator, reason), times in groups.most_common():
            sites = [f.site for f in self.float_operators if (f.operator, f.reason) == (operator, reason)]
            shown = ", ".join(sites[:3]) + (", ..." if times > 3 else "")
            lines.append(f"{times} {operator}: {reason} ({shown})")
        return lines

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
        values["original"] = _step(values["original"]) if values.get("original") else None
        values["latency"] = Latency(**_fields(Latency, values["latency"])) if values.get("latency") else None
        values["float_operators"] = [
            FloatOperator(**_fields(FloatOperator, f)) for f in values.get("float_operators", [])
        ]
        values["weight_only_macs"] = {int(bits): s for bits, s in values.get("weight_only_macs", {}).items()}
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, atomically. Raises `InputError` where `path` cannot be written."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_atomically(path, text.encode() + b"\n")


WIDTH = 120  # of the report as plain text


def plain(table: RenderableType, width: int) -> str:
    """What is shown of a table where there is no terminal: text without colours, `width` characters wide at most."""
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def show(table: RenderableType, width: int) -> None:
    """Print a table: in colour on a terminal, as plain text in a pipe."""
    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(plain(table, width))


NOISE = 0.05  # by how much two medians of the same work may differ


def slower(latency: Latency, floating: Sequence[FloatOperator]) -> str | None:
    """A warning where the result takes longer than float did, and what to do; None where it does not (noise aside)."""
    if latency.speedup >= 1 - NOISE:
        return None
    kinds = Counter(operator.operator for operator in floating)
    between = ", ".join(f"{times} {kind}" if times > 1 else kind for kind, times in kinds.most_common(4))
    reason = (
        f"{between} stay{'s' * (sum(kinds.values()) == 1)} float, and values are converted on the way there and back"
        if kinds
        else "its layers are too small to pay for the conversion to integers"
    )
    return (
        f"the integer model is slower than float here: {latency.speedup:.2f}x; {reason}; "
        "leave the model in float, or the layers that do not pay, with formats={pattern: None}"
    )


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


def count(value: int) -> str:
    """1234567 -> "1.23 M"."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= 0.9995 * limit:  # what would round to 1000 of the smaller unit
            scaled = value / limit
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:,.0f} {unit}"
    return str(value)


def size(value: int) -> str:
    """Bytes in decimal units: 1234567 -> "1.23 MB"."""
    shown = count(value)
    return f"{shown}B" if " " in shown else f"{shown} B"


def ratio(value: float, better: str, worse: str) -> str:
    """2.0 -> "2.00x faster", 0.5 -> "2.00x slower"."""
    return f"{value:.2f}x {better}" if value >= 1 else f"{1 / value:.2f}x {worse}"


def decibel(value: float | None) -> str:
    if value is None:
        return "not measured"
    return "equal" if value == math.inf else f"{value:.1f} dB"

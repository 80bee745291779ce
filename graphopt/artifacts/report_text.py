"""A report in words and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from graphopt.passmanager.step import Step
from graphopt.utils.quantities import count, decibel, ratio, size
from graphopt.utils.tables import Block, Column, Facts, Line, Table, numbers

if TYPE_CHECKING:
    from graphopt.artifacts.report import FloatOperator, Latency, Report

T = TypeVar("T")

# What a report can lack, and why it lacks it unless the maker of the report knows better.
REASONS = {
    "latency": "it was not asked for",
    "accuracy": "no evaluate function was given",
    "agreement": "no calibration data was given",
    "size": "nothing was lowered",
    "integer_macs": "nothing was quantized",
}
NOISE = 0.05  # by how much two medians of the same work may differ


def blocks(report: Report) -> list[Block]:
    """All of the report: steps, attempts, results, notes, warnings."""
    parts: list[Block] = [Line(f"{report.model} for {report.target}", "title")]
    if report.original or report.steps:
        parts.append(steps(report))
    if report.attempts:
        parts.append(attempts(report))
    parts.append(Facts(list(results(report).items())))
    parts += [Line(f"note: {note}") for note in report.notes]
    return parts + [Line(f"warning: {warning}", "warning") for warning in report.warnings]


def steps(report: Report) -> Table:
    names = ("changes", "seconds", "parameters", "MACs", "weights", "SQNR")
    rows = [_step(report.original, original=True)] if report.original else []
    return Table([Column("step"), *numbers(*names)], rows + [_step(step) for step in report.steps])


def _step(step: Step, original: bool = False) -> list[str]:
    changes, sqnr = ("", "") if original else (str(len(step.changes)), decibel(step.sqnr_db))
    costs = [count(step.parameters), count(step.macs), size(step.weight_bytes)]
    return [step.name, changes, f"{step.seconds:.1f}", *costs, sqnr]


def attempts(report: Report) -> Table:
    rows = []
    for tried in report.attempts:
        accuracy, moved = "-", "-"
        if tried.accuracy is not None:
            accuracy = f"{tried.accuracy:.4f}"
            if report.accuracy_before is not None:
                moved = f"{tried.accuracy - report.accuracy_before:+.4f}"
        verdict = tried.note or ("good enough" if tried.met else "")
        rows.append([tried.name, f"{tried.seconds:.1f}", accuracy, moved, verdict])
    return Table([Column("tried"), *numbers("seconds", "accuracy", "change"), Column("")], rows)


def results(report: Report) -> dict[str, str]:
    """The measured results in words, by name, in the order they are shown."""
    out = {"latency": _latency(report), "file size": _size(report), "accuracy": _accuracy(report)}
    out["agreement"] = _or_missing(report, "agreement", report.agreement, lambda a: f"{a:.1%} same prediction as float")
    if report.sqnr_db is not None:
        out["output SQNR"] = decibel(report.sqnr_db)
    if report.float16_macs:
        out["float16"] = f"{report.float16_macs:.1%} of MACs"
    if report.integer_macs or not report.float16_macs:
        out["integer"] = _or_missing(report, "integer_macs", report.integer_macs, lambda s: f"{s:.1%} of MACs")
    if report.weight_only_macs:
        shares = sorted(report.weight_only_macs.items())
        out["weight-only"] = ", ".join(f"{share:.1%} of MACs with {bits}-bit weights" for bits, share in shares)
    if report.float_operators:
        out["stays float"] = "\n".join(_floats(report.float_operators))
    return out


def _or_missing(report: Report, key: str, value: T | None, show: Callable[[T], str]) -> str:
    if value is None:
        return f"not measured: {report.missing.get(key, REASONS[key])}"
    return show(value)


def _latency(report: Report) -> str:
    def show(t: Latency) -> str:
        threads = f"{t.threads} thread{'s' * (t.threads != 1)}"
        times = f"{t.before_ms:.3g} ms ({t.before}) -> {t.after_ms:.3g} ms ({t.after})"
        return f"{times}, {ratio(t.speedup, 'faster', 'slower')}\nmedians, {threads}, {t.host}"

    return _or_missing(report, "latency", report.latency, show)


def _size(report: Report) -> str:
    if report.size_before is None or report.size_after is None:
        known = next((s for s in (report.size_after, report.size_before) if s is not None), None)
        return _or_missing(report, "size", known, size)
    smaller = ratio(report.size_before / max(report.size_after, 1), "smaller", "larger")
    return f"{size(report.size_before)} -> {size(report.size_after)}, {smaller}"


def _accuracy(report: Report) -> str:
    if report.accuracy_before is None or report.accuracy_after is None:
        return _or_missing(report, "accuracy", None, str)
    moved = report.accuracy_after - report.accuracy_before
    return f"{report.accuracy_before:.4f} -> {report.accuracy_after:.4f} ({moved:+.4f})"


def _floats(operators: Sequence[FloatOperator]) -> list[str]:
    groups = Counter((f.operator, f.reason) for f in operators)
    lines = []
    for (operator, reason), times in groups.most_common():
        sites = [f.site for f in operators if (f.operator, f.reason) == (operator, reason)]
        shown = ", ".join(sites[:3]) + (", ..." if times > 3 else "")
        lines.append(f"{times} {operator}: {reason} ({shown})")
    return lines


def slower(latency: Latency, floating: Sequence[FloatOperator]) -> str | None:
    """A warning where the result takes longer than float did, and what to do; None where it does not (noise aside)."""
    if latency.speedup >= 1 - NOISE:
        return None
    kinds = Counter(operator.operator for operator in floating)
    between = ", ".join(f"{times} {kind}" if times > 1 else kind for kind, times in kinds.most_common(4))
    reason = (
        f"{between} stay{'s' * (sum(kinds.values()) == 1)} float, and activations are converted on the way there and back"
        if kinds
        else "its layers are too small to pay for the conversion to integers"
    )
    return (
        f"the integer model is slower than float here: {latency.speedup:.2f}x; {reason}; "
        "leave the model in float, or the layers that do not pay, with formats={pattern: None}"
    )

"""The report of a cascade as one page of HTML: figures, the curve, stages, classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.utils import web
from graphopt.utils.charts import Point, scatter
from graphopt.utils.quantities import ratio
from graphopt.utils.tables import Column, Table, numbers
from graphopt.utils.web import Card

if TYPE_CHECKING:
    from graphopt.cascades.report import CascadeReport


def page(report: CascadeReport) -> str:
    """The whole document."""
    return web.page(f"{report.model}: as much as a sample needs", _parts(report))


def _parts(report: CascadeReport) -> Iterator[str]:
    yield web.paragraph(report.summary(), "lead")
    yield web.cards(_cards(report))
    points = [
        Point(
            ", ".join("never" if t is None else f"{t:.4f}" for t in point.thresholds), point.ms, point.score,
            f"{' / '.join(f'{rate:.0%}' for rate in point.rates)} answered by stage", point is report.chosen, number,
        )
        for number, point in enumerate(report.curve, 1)
    ]  # fmt: skip
    picture = scatter(
        points, "expected milliseconds of a sample", report.score, report.plain_score, "the last stage alone"
    )
    caption = "Measured; numbers are rows of the table. Green: the thresholds that the artifact has."
    parts = [web.figure(picture, caption), web.table(report.curve_table())]
    yield web.panel("Accuracy against expected time", parts)
    yield web.panel("Stages", [web.table(report.stage_table())])
    if report.per_class:
        yield web.panel("Who answers what, by class", [_classes(report)])
    yield web.paragraph(report.measured_on(), "sub")


def _cards(report: CascadeReport) -> Iterator[Card]:
    times = f"{report.plain_ms:.3g} ms → {report.chosen.ms:.3g} ms"
    yield Card("expected time", ratio(1 / report.chosen.ratio, "faster", "slower"), times)
    yield Card(report.score, f"{report.chosen.score:.2f}", f"{report.plain_score:.2f} by the last stage alone")
    yield Card("worst case", f"{report.worst_ms:.3g} ms", f"{report.worst_ratio:.2f} times the plain network's")
    yield Card("answered by the first stage", f"{report.stages[0].rate:.1%}")


def _classes(report: CascadeReport) -> str:
    columns = [Column("class"), *numbers(*(f"stage {n}" for n in range(len(report.stages))))]
    rows = [[name, *(f"{share:.1%}" for share in shares)] for name, shares in report.per_class.items()]
    bars: list[list[float | None]] = [[None, *shares] for shares in report.per_class.values()]
    return web.table(Table(columns, rows), bars, sorts=False)

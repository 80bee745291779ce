"""A report as one page of HTML: warnings, gains and costs, the network, its layers, and everything else on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from graphopt.artifacts import drawing
from graphopt.artifacts.network import WORDS, Call, Distribution
from graphopt.artifacts.report_text import REASONS, attempts, results, steps
from graphopt.utils import web
from graphopt.utils.charts import Point, histogram, scatter
from graphopt.utils.quantities import count, decibel, ratio, size
from graphopt.utils.tables import Column, Facts, Line, Table, numbers
from graphopt.utils.web import Card

if TYPE_CHECKING:
    from graphopt.artifacts.report import Report

SHOWN = 24  # distributions that are seen at once
SCRIPT = """
document.querySelectorAll("[data-drawing]").forEach(panel => {
  const box = panel.querySelector(".drawing"), svg = box.querySelector("svg");
  const width = svg.viewBox.baseVal.width, height = svg.viewBox.baseVal.height;
  let zoom = 1;
  const set = (to, x = box.clientWidth / 2, y = box.clientHeight / 2) => {
    const before = zoom;
    zoom = Math.min(4, Math.max(.08, to));
    const left = (box.scrollLeft + x) * zoom / before - x, top = (box.scrollTop + y) * zoom / before - y;
    svg.setAttribute("width", width * zoom); svg.setAttribute("height", height * zoom);
    box.scrollLeft = left; box.scrollTop = top;
  };
  const room = () => (box.clientWidth - 4) / width;
  set(Math.min(1, Math.max(room(), .55)));
  box.scrollTop = 0;
  panel.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    const does = button.dataset;
    if (does.zoom === "fit") set(Math.min(room(), (box.clientHeight - 4) / height));
    else if (does.zoom) set(zoom * does.zoom);
    if (!does.colour) return;
    svg.querySelectorAll("rect").forEach(each => each.setAttribute("fill", each.getAttribute("data-fill-" + does.colour)));
    panel.querySelectorAll("button[data-colour]").forEach(each => each.setAttribute("aria-pressed", each === button));
    panel.querySelectorAll("[data-legend]").forEach(each => { each.hidden = each.dataset.legend !== does.colour; });
  });
  box.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const place = box.getBoundingClientRect();
    set(zoom * Math.exp(-event.deltaY / 300), event.clientX - place.left, event.clientY - place.top);
  }, {passive: false});
});
document.querySelectorAll("th.sorts").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.dataset.down !== "1";
  const key = row => { const words = row.cells[column].textContent; const figure = parseFloat(words.replace(/,/g, ""));
    return head.classList.contains("n") ? (isNaN(figure) ? -Infinity : figure) : words; };
  const order = [...body.rows].sort((a, b) => {
    const p = key(a), q = key(b);
    return (p > q ? 1 : p < q ? -1 : 0) * (down ? -1 : 1);
  });
  head.dataset.down = down ? "1" : "0";
  body.append(...order);
}));
"""


def page(report: Report) -> str:
    """The whole document."""
    script = SCRIPT if report.network else ""
    return web.page(f"{report.model} for {report.target}", _parts(report), script=script)


def _parts(report: Report) -> Iterator[str]:
    made = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield web.paragraph(f"by {made}", "sub") if made else ""
    yield web.blocks([Line(warning, "warning") for warning in report.warnings])
    yield web.paragraph(summary(report), "lead")
    yield web.cards(_cards(report))
    if report.steps or report.original:
        yield web.panel("Steps", [web.table(steps(report))])
    if report.attempts:
        yield _attempts(report)
    if report.network:
        yield _drawing(report.network)
        yield _layers(report.network)
    if report.distributions:
        yield from _distributions(report.distributions)
    if report.notes:
        yield web.panel("Notes", map(web.paragraph, report.notes))
    yield from _details(report)


# ---- What was gained, and what it cost ------------------------------------------------------------------------------


def summary(report: Report) -> str:
    """One sentence: what the model gained, and what it cost, as far as either was measured."""
    gained = []
    if report.latency is not None:
        gained.append(ratio(report.latency.speedup, "faster", "slower"))
    if report.size_before and report.size_after:
        gained.append(ratio(report.size_before / report.size_after, "smaller", "larger"))
    if (first := report.original) and report.steps and (last := report.steps[-1]).macs < first.macs:
        gained.append(f"{last.macs / first.macs:.0%} of the multiply-accumulates")
    if report.accuracy_before is not None and report.accuracy_after is not None:
        cost = f"accuracy {report.accuracy_before:.4f} → {report.accuracy_after:.4f}"
    elif report.agreement is not None:
        cost = f"the same prediction as float on {report.agreement:.1%} of the samples"
    elif report.sqnr_db is not None:
        cost = f"the worst output has {decibel(report.sqnr_db)} of SQNR against float"
    else:
        cost = "what it cost was not measured"
    return f"{', '.join(gained) or 'Nothing was measured of what it gained'}; {cost}."


def _cards(report: Report) -> Iterator[Card]:
    latency, said = report.latency, results(report)
    if latency is not None:
        threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
        times = f"{latency.before_ms:.3g} ms → {latency.after_ms:.3g} ms"
        says = f"{times}\n{threads}, {latency.host}"
        yield Card("latency", ratio(latency.speedup, "faster", "slower"), says)
    else:
        yield _missing(report, "latency", "latency")
    if report.size_before and report.size_after:
        smaller = ratio(report.size_before / report.size_after, "smaller", "larger")
        yield Card("file size", smaller, f"{size(report.size_before)} → {size(report.size_after)}")
    else:
        yield (
            _missing(report, "file size", "size")
            if report.size_after is None
            else Card("file size", size(report.size_after))
        )
    before, after = report.accuracy_before, report.accuracy_after
    if before is not None and after is not None:
        yield Card("accuracy", f"{after:.4f}", f"{before:.4f} in float, {after - before:+.4f}")
    else:
        yield _missing(report, "accuracy", "accuracy")
    if report.agreement is not None:
        yield Card("agreement", f"{report.agreement:.1%}", "same prediction as float")
    if report.sqnr_db is not None:
        yield Card("output SQNR", decibel(report.sqnr_db), "the worst output against float")
    for name in ("integer", "float16", "weight-only"):
        if name in said and not said[name].startswith("not measured"):
            figure, _, rest = said[name].partition(" of ")
            yield Card(name, figure, f"of {rest}")


def _missing(report: Report, name: str, key: str) -> Card:
    return Card(name, "not measured", report.missing.get(key, REASONS[key]), missing=True)


def _attempts(report: Report) -> str:
    """All that were judged over the time of a call, or over the bytes of their weights where no time was measured."""
    judged = [tried for tried in report.attempts if tried.accuracy is not None]
    timed = [tried for tried in judged if tried.milliseconds is not None]
    shown = timed or [tried for tried in judged if tried.weight_bytes is not None]
    parts = [web.table(attempts(report))]
    if len(shown) > 1:
        chosen = next(
            (tried for tried in reversed(shown) if tried.met), max(shown, key=lambda tried: tried.accuracy or 0.0)
        )
        points = [
            Point(
                tried.name,
                (tried.milliseconds or 0.0) if timed else (tried.weight_bytes or 0) / 1e6,
                tried.accuracy or 0.0,
                f"accuracy {tried.accuracy:.4f}",
                tried is chosen,
                report.attempts.index(tried) + 1,
            )
            for tried in shown
        ]
        axis = "milliseconds of a call" if timed else "weights, MB"
        picture = scatter(points, axis, "accuracy", report.accuracy_before, "float")
        parts.append(web.figure(picture, "Numbers are places in the table. Green: the one that was taken."))
    return web.panel("What was tried to keep the accuracy", parts)


# ---- The network ----------------------------------------------------------------------------------------------------


def _drawing(network: Sequence[Call]) -> str:
    colours = drawing.available(network)
    first = next(colour for colour in ("damage", "time", "arithmetic") if colour in colours)
    buttons = "".join(
        f'<button type="button" data-colour="{colour}" aria-pressed="{str(colour == first).lower()}">{colour}</button>'
        for colour in colours
    )
    zooms = "".join(
        f'<button type="button" data-zoom="{zoom}" aria-label="{says}">{sign}</button>'
        for zoom, sign, says in (("1.25", "+", "larger"), ("0.8", "-", "smaller"), ("fit", "fit", "all of it"))
    )
    legends = "".join(_legend(network, colour, colour != first) for colour in colours)
    picture = drawing.draw(network, first)
    words = "Each box says what it computes, the bits of weights / result, and its multiply-accumulates; more under the pointer."
    tools = f'<div class="tools"><span>{buttons}</span><span>{zooms}</span>{legends}</div>'
    return (
        f'<section class="panel" data-drawing><h2>The network</h2>{tools}<div class="drawing" tabindex="0">{picture}</div>'
        f"{web.paragraph(words, 'sub')}</section>"
    )


def _legend(network: Sequence[Call], colour: drawing.Colour, hidden: bool) -> str:
    entries = "".join(
        f'<i style="background:{fill}"></i>{escape(says)}' for fill, says in drawing.legend(network, colour)
    )
    return f'<span data-legend="{colour}"{" hidden" * hidden}>{drawing.LEGENDS[colour]}:{entries}</span>'


def _layers(network: Sequence[Call]) -> str:
    found = [call for call in network if call.arithmetic]
    timed, analyzed = (any(getattr(c, name) is not None for c in found) for name in ("milliseconds", "sqnr_db"))
    columns = [Column("layer"), Column("operator"), Column("bits"), Column("computes in"), *numbers("MACs")]
    columns += numbers("ms") * timed + numbers("SQNR, dB") * analyzed
    most_macs = max((call.macs for call in found), default=0) or 1
    most_ms = max((call.milliseconds or 0.0 for call in found), default=0.0) or 1.0
    rows, bars, ends = [], [], drawing.damage_ends(found)
    for call in found:
        how = f"{WORDS[call.arithmetic]}{f': {call.reason}' if call.reason else ''}"
        row = [call.name, call.operator, call.bits, how, f"{call.macs:,}" if call.macs else ""]
        shares: list[float | None] = [*(None,) * 4, call.macs / most_macs if call.macs else None]
        if timed:
            row.append("" if call.milliseconds is None else f"{call.milliseconds:.4f}")
            shares.append(None if call.milliseconds is None else call.milliseconds / most_ms)
        if analyzed:
            row.append("" if call.sqnr_db is None else decibel(call.sqnr_db).removesuffix(" dB"))
            shares.append(None if call.sqnr_db is None else drawing.damage(call.sqnr_db, ends))
        rows.append(row)
        bars.append(shares)
    words = ["Bits of weights / result."]
    words += ["ms: of its kernels, watched by the runtime."] * timed
    words += ["SQNR: at the output, with this layer alone quantized; a long bar is great damage."] * analyzed
    hints = [] if timed and analyzed else [_how(timed, analyzed)]
    parts = [web.paragraph(" ".join(words), "sub"), web.table(Table(columns, rows), bars, sorts=True), *hints]
    return web.panel(f"Layers ({len(found)})", parts)


def _how(timed: bool, analyzed: bool) -> str:
    lacking = ["time"] * (not timed) + ["damage"] * (not analyzed)
    calls = ["result.artifact.profile(images)"] * (not timed) + ["graphopt.analyze(result.graph, images)"] * (
        not analyzed
    )
    flags = ["--profile"] * (not timed) + ["--analyze"] * (not analyzed)
    said = f"{' and '.join(lacking)} by layer: result.report.include({', '.join(calls)}), or {' '.join(flags)}"
    return web.paragraph(f"{said} on the command line.".capitalize(), "sub")


def _distributions(found: Sequence[Distribution]) -> Iterator[str]:
    words = (
        "How often values occur (logarithmic), and in red the ends of the grid that they are rounded to; worst first. "
        "Of a weight with a grid to each channel, the widest."
    )
    pictures = list(map(_distribution, found))
    yield web.panel("Values and their grids", [web.paragraph(words, "sub"), web.grid(pictures[:SHOWN])])
    if rest := pictures[SHOWN:]:
        yield web.folded(f"{len(rest)} more", [web.grid(rest)])


def _distribution(found: Distribution) -> str:
    clipped = "<0.01%" if 0 < found.clipped < 1e-4 else f"{found.clipped:.2%}"
    says = (
        f"{found.bits} bits, SQNR {decibel(found.sqnr_db)}, {clipped} clipped, {found.used} of {found.codes} codes used"
    )
    label = f"histogram of the {found.kind} {found.name}"
    picture = histogram(found.counts, found.start, found.step, found.low, found.high, label)
    return web.figure(picture, f"{found.kind}, {says}", found.name)


# ---- Everything else, on demand -------------------------------------------------------------------------------------


def _details(report: Report) -> Iterator[str]:
    if report.float_operators:
        kinds = [Column("where"), Column("operator"), Column("why"), *numbers("MACs")]
        floats = [[f.site, f.operator, f.reason, count(f.macs) if f.macs else ""] for f in report.float_operators]
        yield web.folded(f"What stays in float ({len(floats)})", [web.table(Table(kinds, floats))])
    for step in report.steps:
        if step.changes:
            rows = [list(change) for change in step.changes]
            options = web.blocks([Facts([(name, _written(value)) for name, value in step.options.items()])])
            parts = [options, web.table(Table([Column("where"), Column("what")], rows))]
            yield web.folded(f"{step.name}: what it changed ({len(rows)})", parts)
    yield web.folded("Seconds by stage", [web.blocks(report.timings.blocks())])
    asked = [(name, _written(value)) for name, value in report.options.items() if value is not None]
    if report.seed is not None:
        asked.append(("seed", str(report.seed)))
    if asked:
        yield web.folded("What was asked for", [web.blocks([Facts(asked)])])


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

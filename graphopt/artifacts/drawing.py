"""A network drawn as SVG: a box for each call, in rows from the inputs down, coloured by what is asked for.

    svg = draw(report.network, "damage")

Boxes have the colours of all other questions with them (`data-fill-...`), so that a page can change them without drawing anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from graphopt.artifacts.network import WORDS, Call
from graphopt.utils.layout import Layout, layout
from graphopt.utils.quantities import count, decibel
from graphopt.utils.svg import element, mixed, picture, text, title

Colour = Literal["arithmetic", "damage", "time", "work"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
LEGENDS = {
    "arithmetic": "what it computes in",
    "damage": "what quantizing it alone costs",
    "time": "measured time",
    "work": "multiply-accumulates",
}
BOX, TALL, PITCH, MARGIN = 190.0, 40.0, 62.0, 14.0  # pixels: width and height of a box, from row to row, around all
NOTHING = "#e8ebef"  # of what there is no figure for
HEAT = ("#dcefe3", "#fbe7ad", "#f2937f")  # little, some, much
KINDS = {"integer": "#cbe0f8", "weights": "#dfd4f5", "float16": "#fbe7ad", "float": "#ffd0a6", "": NOTHING}
INK, SOFT, LINE = "#1b2026", "#4a535e", "#8a94a0"
GOOD_DB, SPAN_DB = (
    60.0,
    12.0,
)  # SQNR from which nothing is lost that matters, and the least span that all colours are used for
LETTERS = 25  # of a name that fit into a box


def available(network: Sequence[Call]) -> list[Colour]:
    """What the calls can be coloured by: that which something is known of."""
    known = {
        "damage": any(call.sqnr_db is not None for call in network),
        "time": any(call.milliseconds for call in network),
        "work": any(call.macs for call in network),
    }
    return [colour for colour in COLOURS if known.get(colour, True)]


def draw(network: Sequence[Call], colour: Colour = "arithmetic", label: str = "the network") -> str:
    """The SVG of a network; empty where it has no calls."""
    if not network:
        return ""
    plan = layout([list(call.reads) for call in network])
    fills = {name: _fills(network, name) for name in available(network)}
    boxes = [_box(plan, i, call, colour, fills) for i, call in enumerate(network)]
    edges = [_edge(plan, ends, bends) for ends, bends in plan.edges.items()]
    said = f"{label}: {len(network)} calls, coloured by {LEGENDS[colour]}"
    width, height = plan.width * BOX + 2 * MARGIN, plan.height * PITCH - (PITCH - TALL) + 2 * MARGIN
    return picture(width, height, [*edges, *boxes], said)


def legend(network: Sequence[Call], colour: Colour) -> list[tuple[str, str]]:
    """Colours and what they stand for."""
    if colour == "arithmetic":
        there = {call.arithmetic for call in network}
        return [(KINDS[kind], WORDS[kind]) for kind in KINDS if kind in there]
    good, bad = damage_ends(network)
    most = {
        "damage": f"{bad:.0f} dB",
        "time": f"{max((c.milliseconds or 0.0) for c in network):.3g} ms",
        "work": count(max(c.macs for c in network)),
    }[colour]
    least = {"damage": f"{good:.0f} dB and more", "time": "0 ms", "work": "0"}[colour]
    return [(HEAT[0], least), (HEAT[1], ""), (HEAT[2], most), (NOTHING, "not measured" if colour != "work" else "none")]


def _fills(network: Sequence[Call], colour: Colour) -> list[str]:
    if colour == "arithmetic":
        return [KINDS[call.arithmetic] for call in network]
    ends = damage_ends(network)
    most_ms = max((call.milliseconds or 0.0) for call in network) or 1.0
    most_macs = max(call.macs for call in network) or 1
    shares: list[float | None] = []
    for call in network:
        if colour == "damage":
            shares.append(None if call.sqnr_db is None else damage(call.sqnr_db, ends))
        elif colour == "time":
            shares.append(None if call.milliseconds is None else call.milliseconds / most_ms)
        else:
            shares.append(call.macs / most_macs if call.macs else None)
    return [NOTHING if share is None else mixed(HEAT, share) for share in shares]


def damage_ends(network: Sequence[Call]) -> tuple[float, float]:
    """The SQNR of no damage and of the greatest there is, between which colours are spread."""
    found = [call.sqnr_db for call in network if call.sqnr_db is not None and math.isfinite(call.sqnr_db)]
    if not found:
        return GOOD_DB, GOOD_DB - SPAN_DB
    bad = min(found)
    return max(min(max(found), GOOD_DB), bad + SPAN_DB), bad


def damage(sqnr_db: float, ends: tuple[float, float]) -> float:
    """0 where nothing is lost, 1 where most is."""
    good, bad = ends
    return 1.0 if math.isnan(sqnr_db) else min(max((good - sqnr_db) / (good - bad), 0.0), 1.0)


def _box(plan: Layout, i: int, call: Call, colour: Colour, fills: Mapping[Colour, Sequence[str]]) -> str:
    x, y = plan.places[i] * BOX + MARGIN - BOX / 2, plan.rows[i] * PITCH + MARGIN
    rectangle = element(
        "rect", x=x, y=y, width=BOX, height=TALL, rx=6, fill=fills[colour][i],
        **{f"data_fill_{name}": colours[i] for name, colours in fills.items()},
    )  # fmt: skip
    first = text(_short(call.name), x + 9, y + 17, font_size=12, font_weight=600, fill=INK)
    second = text(_cut(_details(call), LETTERS + 8), x + 9, y + 32, font_size=10.5, fill=SOFT)
    return element("g", [title(describe(call)), rectangle, first, second])


def _edge(plan: Layout, ends: tuple[int, int], bends: Sequence[tuple[int, float]]) -> str:
    source, target = ends
    points = [(plan.places[source], plan.rows[source] * PITCH + TALL)]
    for row, place in bends:
        points += [(place, row * PITCH), (place, row * PITCH + TALL)]
    points.append((plan.places[target], plan.rows[target] * PITCH))
    path, (x, y) = "", (points[0][0] * BOX + MARGIN, points[0][1] + MARGIN)
    path = f"M{x:.1f} {y:.1f}"
    for place, down in points[1:]:
        to_x, to_y = place * BOX + MARGIN, down + MARGIN
        bend = (to_y - y) / 2
        path += f"C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    return element("path", d=path, fill="none", stroke=LINE, stroke_width=1.4)


def _details(call: Call) -> str:
    figures = [call.bits and f"{call.bits.replace(' ', '')} bits", count(call.macs) if call.macs else ""]
    behind = " · ".join(["", *(figure for figure in figures if figure)])
    return _cut(call.operator, max(LETTERS + 8 - len(behind), 6)) + behind


def describe(call: Call) -> str:
    """Everything that is known of a call, line by line."""
    shape = " x ".join("?" if size is None else str(size) for size in call.shape)
    lines = [call.name, f"{call.operator}, gives {shape}" if shape else call.operator]
    if call.arithmetic:
        lines.append(f"computes in {WORDS[call.arithmetic]}{f': {call.reason}' if call.reason else ''}")
    if call.bits:
        lines.append(f"bits of weights / result: {call.bits}")
    if call.macs:
        lines.append(f"{call.macs:,} multiply-accumulates")
    if call.milliseconds is not None:
        lines.append(f"{call.milliseconds:.4g} ms")
    if call.sqnr_db is not None:
        lines.append(f"{decibel(call.sqnr_db)} at the output, quantized alone")
    return "\n".join(lines)


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def _short(words: str, letters: int = LETTERS) -> str:
    """Of a name the end, which tells it from others."""
    return words if len(words) <= letters else f"…{words[1 - letters :]}"

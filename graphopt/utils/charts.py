"""Small charts as SVG: points with names, and histograms with the ends of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.utils.svg import element, picture, text, title

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 18.0, 14.0, 44.0  # margins, for axes and their names
GOOD, OTHER, RANGE = "#3c9460", "#4878a8", "#c0453a"
DIM = "#808a95"  # lines and words that are seen on light and on dark


@dataclass(frozen=True)
class Point:
    """One point: its name, what is said of it, whether it is the one that was chosen, and its number in some list."""

    name: str
    x: float
    y: float
    says: str = ""
    chosen: bool = False
    number: int = 0


def scatter(points: Sequence[Point], x_name: str, y_name: str, level: float | None = None, level_name: str = "") -> str:
    """Points over two axes with names.

    Args:
        level: a value of y that a dashed line marks, such as what was asked for.
    """
    ys = [point.y for point in points] + ([] if level is None else [level])
    x_of, x_ticks = _scale([point.x for point in points], LEFT, WIDTH - RIGHT)
    y_of, y_ticks = _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x_of, x_ticks, y_of, y_ticks), *_names(x_name, y_name)]
    if level is not None:
        y = y_of(level)
        dashes: dict[str, Any] = {"stroke": GOOD, "stroke_dasharray": "5 4", "stroke_width": 1.5}
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, **dashes))
        parts.append(text(level_name, WIDTH - RIGHT - 4, y - 5, font_size=11, fill=GOOD, text_anchor="end"))
    parts += [_point(point, x_of(point.x), y_of(point.y)) for point in points]
    return picture(WIDTH, HEIGHT, parts, f"{y_name} over {x_name} of {len(points)} attempts")


def histogram(counts: Sequence[float], start: float, step: float, low: float, high: float, label: str) -> str:
    """Bars over a logarithmic count, and lines where the grid ends."""
    width, height, foot = 250.0, 92.0, 16.0
    end = start + step * len(counts)
    ends = [value for value in (low, high) if math.isfinite(value)]
    left, right = min([start, *ends]), max([end, *ends])
    across = (width - 2) / ((right - left) or 1.0)
    tallest = math.log1p(max(counts, default=0.0)) or 1.0
    outline = f"M{1 + (start - left) * across:.1f} {height - foot:g}"
    for i, count in enumerate(counts, 1):
        tall = math.log1p(count) / tallest * (height - foot - 4)
        outline += f"V{height - foot - tall:.1f}H{1 + (start + i * step - left) * across:.1f}"
    parts = [element("path", d=f"{outline}V{height - foot:g}Z", fill=OTHER)]
    for value in ends:
        x = 1 + (value - left) * across
        parts.append(element("line", x1=x, x2=x, y1=2, y2=height - foot, stroke=RANGE, stroke_width=1.6))
    for value, x, anchor in ((left, 1.0, "start"), (right, width - 1, "end")):
        parts.append(text(f"{value:.3g}", x, height - 3, font_size=10.5, fill=DIM, text_anchor=anchor))
    return picture(width, height, parts, label)


def _point(point: Point, x: float, y: float) -> str:
    colour = GOOD if point.chosen else OTHER
    circle = element("circle", cx=x, cy=y, r=9, fill=colour, fill_opacity=1.0 if point.chosen else 0.75)
    digits = text(str(point.number), x, y + 4, font_size=11, font_weight=600, fill="#ffffff", text_anchor="middle")
    return element("g", [title(f"{point.name}\n{point.says}".strip()), circle, digits])


def _scale(values: Sequence[float], first: float, last: float) -> tuple[Callable[[float], float], list[float]]:
    """From values to pixels, with room around them, and round values to mark."""
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return lambda value: first + (value - low) / (high - low) * (last - first), ticks


def _grid(
    x_of: Callable[[float], float], x_ticks: Sequence[float], y_of: Callable[[float], float], y_ticks: Sequence[float]
) -> list[str]:
    line: dict[str, Any] = {"stroke": DIM, "stroke_opacity": 0.3}
    parts = []
    for tick in x_ticks:
        parts.append(element("line", x1=x_of(tick), x2=x_of(tick), y1=TOP, y2=HEIGHT - BOTTOM, **line))
        parts.append(
            text(f"{tick:.4g}", x_of(tick), HEIGHT - BOTTOM + 16, font_size=11, fill=DIM, text_anchor="middle")
        )
    for tick in y_ticks:
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_of(tick), y2=y_of(tick), **line))
        parts.append(text(f"{tick:.4g}", LEFT - 7, y_of(tick) + 4, font_size=11, fill=DIM, text_anchor="end"))
    return parts


def _names(x_name: str, y_name: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:g})"
    across = text(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, font_size=12, fill=DIM, text_anchor="middle")
    return [across, text(y_name, 14, middle, font_size=12, fill=DIM, text_anchor="middle", transform=turned)]

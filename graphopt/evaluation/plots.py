"""Pictures of an analysis: layers by what their quantization costs, and the distribution of every quantized tensor.

Needs matplotlib, which comes with `pip install 'graphopt[plots]'`.
"""

from __future__ import annotations

import html
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.evaluation.tensor_statistics import TensorStatistics
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError
from graphopt.utils.files import check_folder, check_writable, make_folder, write_atomically
from graphopt.utils.progress import track
from graphopt.utils.quantities import decibel

if TYPE_CHECKING:
    from graphopt.evaluation.analysis import Analysis, LayerSensitivity

FORMATS = ("png", "svg")
BARS = 128  # of a histogram
ALONE, CUMULATIVE, RANGE = "#3b6ea5", "#d98c3f", "#b03030"


def check(folder: str | Path, format: str = "png") -> Path:
    """The absolute path of the folder, after making sure that plots can be drawn and written; cheap, so call it early.

    Raises:
        InputError: matplotlib is not installed, the format is unknown, or the folder cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r} for plots; known: {', '.join(FORMATS)}")
    check_writable(folder)
    target = check_folder(folder)
    _figure(1, 1)
    return target


def draw(analysis: Analysis, folder: str | Path, worst: int | None = None, format: str = "png") -> list[Path]:
    """Write `layers.<format>`, one file per quantized tensor, and `index.html`, which shows them; see `Analysis.plot`."""
    if worst is not None:
        check_count("worst", worst, least=0)
    target = make_folder(check(folder, format))
    written = [_write(layers(analysis), target / f"layers.{format}")]
    titles = ["Layers, by what quantizing them costs"]
    for tensor in track(analysis.worst_tensors()[:worst], "drawing"):
        number = analysis.tensors.index(tensor)
        name = re.sub(r"[^\w.-]+", "_", f"{number:03}_{tensor.kind}_{tensor.name}")[:100]
        written.append(_write(histogram(tensor), target / f"{name}.{format}"))
        titles.append(f"{tensor.name} ({tensor.kind}), {decibel(tensor.sqnr_db)}")
    write_atomically(target / "index.html", _index(written, titles).encode())
    return written


def _index(pictures: list[Path], titles: list[str]) -> str:
    """A page of all pictures, the worst tensor first, with a list that leads to each."""
    pairs = [(html.escape(path.name), html.escape(title)) for path, title in zip(pictures, titles, strict=True)]
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in pairs)
    shown = "".join(
        f'<h2 id="{name}">{title}</h2><img src="{name}" alt="{title}" loading="lazy">' for name, title in pairs
    )
    style = "body{font-family:sans-serif;margin:2em}img{max-width:100%}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Plots of an analysis</title><style>{style}</style>'
        f"<h1>Plots of an analysis</h1><ul>{links}</ul>{shown}</html>"
    )


def layers(analysis: Analysis) -> Any:
    """A matplotlib figure: what quantizing each layer does to the network's output, alone and with all before it, in dB.

    Noise in relation to the signal, -SQNR, so that the longest bar is the worst layer; float layers are left out.
    """
    found = [layer for layer in analysis.ranked() if not layer.is_float][::-1]  # the first bar is drawn at the bottom
    figure = _figure(8, 1.5 + 0.25 * len(found))
    axes = figure.subplots()
    rows = range(len(found))
    effects = {
        "alone": (ALONE, 0.2, [_noise(layer, "alone") for layer in found]),
        "cumulative": (CUMULATIVE, -0.2, [_noise(layer, "cumulative") for layer in found]),
    }
    finite = [n for _, _, noises in effects.values() for n in noises if math.isfinite(n)]
    floor = min(finite, default=-1.0) - 3
    for label, (colour, shift, noises) in effects.items():
        ends = [max(n, floor) if math.isfinite(n) else floor for n in noises]
        axes.barh([r + shift for r in rows], [e - floor for e in ends], 0.4, left=floor, color=colour, label=label)
    axes.set_yticks(list(rows), [layer.name for layer in found], fontsize=7)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("quantization noise at the network's output, dB below the signal")
    axes.xaxis.set_major_formatter(lambda x, _: f"{-x:.0f}")
    figure.legend(loc="outside upper right", ncols=2)
    axes.grid(axis="x", alpha=0.3)
    return figure


def histogram(tensor: TensorStatistics) -> Any:
    """A matplotlib figure: how often values occur (logarithmic), and the ends of the grid."""
    figure = _figure(7, 3.5)
    axes = figure.subplots()
    counts, start, step = tensor.coarse(BARS)
    edges = [start + i * step for i in range(len(counts) + 1)]
    axes.stairs(counts, edges, fill=True, color=ALONE)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    if math.isfinite(tensor.high):  # blocks that find their own exponents have no ends
        axes.axvline(tensor.low, color=RANGE, linewidth=1.2)
        label = "range" if tensor.channels == 1 else f"range, the widest of {tensor.channels} channels"
        axes.axvline(tensor.high, color=RANGE, linewidth=1.2, label=label)
        axes.legend(loc="upper right", fontsize=8)
    axes.set_title(
        f"{tensor.name}: {tensor.bits} bits, SQNR {decibel(tensor.sqnr_db)}, {tensor.clipped:.3%} clipped, "
        f"{tensor.used} of {tensor.codes} codes used",
        fontsize=9,
    )
    axes.set_ylabel("elements")
    return figure


def _noise(layer: LayerSensitivity, kind: str) -> float:
    return -(layer.alone if kind == "alone" else layer.cumulative).output.sqnr_db


def _figure(width: float, height: float) -> Any:
    """A figure of its own, in inches: matplotlib's global state and windows stay out of it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib, which is not installed; run: pip install 'graphopt[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> Path:
    content = io.BytesIO()
    format = path.suffix[1:]
    figure.savefig(content, format=format, dpi=110, metadata={"Date": None} if format == "svg" else None)
    write_atomically(path, content.getvalue())
    return path

"""Does a grid fit a number format of the hardware? If not, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from graphopt.evaluation.compliance.model import DeclaredGrid
from graphopt.formats import Format, NumberFormat

STORAGE = {
    np.dtype(np.int8): (8, True),
    np.dtype(np.uint8): (8, False),
    np.dtype(np.int16): (16, True),
    np.dtype(np.uint16): (16, False),
}


class Misfit(NamedTuple):
    """Rule broken, what is wrong, what to do."""

    rule: str
    what: str
    remedy: str


def misfits(grid: DeclaredGrid, formats: Iterable[NumberFormat], axis: int | None) -> list[Misfit]:
    """What keeps a grid from being on any of these formats, judged by the nearest of them.

    Args:
        axis: the dimension of output channels of a weight; None for values.
    """
    return min((list(_misfits(grid, format, axis)) for format in formats), key=len)


def _misfits(grid: DeclaredGrid, format: NumberFormat, axis: int | None) -> Iterator[Misfit]:
    if not isinstance(format, Format):
        yield Misfit(
            "format", "codes are evenly spaced", f"round the float model to {format}, which ONNX cannot express"
        )
        return
    if grid.scale is None or grid.zero_point is None:
        yield Misfit("constant-grid", "scale or zero point is computed at run time", "calibrate: quantize statically")
        return
    if not np.all(np.isfinite(grid.scale)) or np.any(grid.scale <= 0):
        yield Misfit("positive-scale", "a scale is not a positive number", "calibrate on data without NaN or infinity")
        return
    wanted = 8 if format.bits <= 8 else 16
    bits, signed = STORAGE.get(grid.dtype, (0, True))
    if bits != wanted:
        yield Misfit("bits", f"codes are {grid.dtype}", f"quantize to {format}")
    elif signed != format.signed:
        yield Misfit("sign", f"codes are {grid.dtype}", f"quantize to {format}")
    elif format.symmetric and np.any(grid.zero_point != (0 if signed else 1 << (bits - 1))) and np.any(grid.zero_point):
        yield Misfit("zero-point", f"zero point {_few(grid.zero_point)}", "make the range symmetric, so that it is 0")
    elif axis is not None and grid.codes is not None and _outside(grid.codes, format):
        ends = f"[{grid.codes.min()}, {grid.codes.max()}]"
        yield Misfit("code-range", f"codes reach {ends}", f"keep them in [{format.quant_min}, {format.quant_max}]")
    if grid.block:
        yield Misfit("granularity", f"a scale to every {grid.block} elements", f"quantize {_grain(format)}")
    elif grid.per_channel and (axis is None or not format.per_channel):
        yield Misfit("granularity", "a scale per channel", f"quantize {_grain(format)}")
    elif (
        grid.per_channel
        and grid.codes is not None
        and axis is not None
        and grid.axis % grid.codes.ndim != axis % grid.codes.ndim
    ):
        yield Misfit(
            "axis",
            f"scales along dimension {grid.axis}",
            f"one to each output channel, dimension {axis % grid.codes.ndim}",
        )
    if format.power_of_two and not np.all(np.frexp(grid.scale)[0] == 0.5):
        yield Misfit("power-of-two", f"scale {_few(grid.scale)}", "round scales up to powers of two")


def _outside(codes: np.ndarray[tuple[int, ...], np.dtype[np.int8]], format: Format) -> bool:
    return bool(codes.size) and not format.quant_min <= int(codes.min()) <= int(codes.max()) <= format.quant_max


def _grain(format: Format) -> str:
    return "per output channel" if format.per_channel else "per tensor"


def _few(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
    flat = values.reshape(-1)
    return ", ".join(f"{v:.6g}" for v in flat[:3]) + (", ..." if flat.size > 3 else "")

"""Depthwise convolution: one filter for each channel, vectors along channels.

With `vpdpbusd` the taps of a row go four at a time: a lane holds x[kx], x[kx + 1], ... of its channel as bytes, which
neighbouring rows share. Elsewhere codes are widened to 16 bits and multiplied one by one.
"""

from __future__ import annotations

import numpy as np

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import constants, dots, emit, rounding
from graphopt.backends.tvm.schedules.dots import Dot
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.lookup import Rows
from graphopt.backends.tvm.schedules.sliding import UNROLLED, Position, Sliding
from graphopt.backends.tvm.schedules.specs import Conv
from graphopt.backends.tvm.schedules.staging import Staging
from graphopt.backends.tvm.schedules.tiles import Tile


def applies(spec: Conv) -> bool:
    return spec.groups > 1 and spec.groups == spec.channels == spec.shape[3]


def candidates(spec: Conv, machine: Processor) -> list[Tile]:
    """The tiles a depthwise convolution may have, the best by rule first."""
    lanes = min(machine.lanes("float32"), spec.channels)
    fours = _fours(spec, machine)
    group = fours.depth if fours else 1
    return Sliding(spec, Staging.of(spec, spec.data), machine, lanes, spec.data, group).candidates


def _fours(spec: Conv, machine: Processor) -> Dot | None:
    """What multiplies four taps of a row at a time, if the machine has it for this layer."""
    if isinstance(machine, Gpu) or spec.kernel[0] * spec.kernel[1] > UNROLLED:
        return None
    dot = dots.choose(spec.data, machine)
    return dot if dot.kind == "vnni" and spec.channels >= dot.lanes else None


def conv(spec: Conv, machine: Processor, tile: Tile | None = None) -> Kernel:
    """Where `applies`. `tile`: one of `candidates`; None: the first."""
    lanes = min(machine.lanes("float32"), spec.channels)
    fours = _fours(spec, machine)
    group = fours.depth if fours else 1
    as_they_are = not spec.integer or isinstance(machine, Gpu)
    read = fours.data if fours else spec.data if as_they_are else "int16"
    stored = fours.weight if fours else "int8" if spec.integer and as_they_are else read
    wide = "int32" if spec.integer else "float32"
    staging = Staging.of(spec, read, fill=spec.zero_point)
    loops = Sliding(spec, staging, machine, lanes, wide, group, tile)
    kh, kw = spec.kernel
    packed = (kh, -(-kw // group), spec.channels, group)

    def pack(weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        constants.check(spec, weight, bias, multiplier)
        by_tap = np.pad(weight[:, 0].transpose(1, 2, 0), ((0, 0), (0, -kw % group), (0, 0)))
        grouped = by_tap.reshape(kh, -1, group, spec.channels).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(grouped, dtype=stored), *constants.vectors(
            spec, weight, bias, multiplier, staging.shift
        )

    def body(*flats: Flat) -> None:
        flat = dict(zip(arguments, flats, strict=True))

        def start(channel: Expr) -> Expr:
            return flat["bias"].load(channel, lanes) if "bias" in flat else emit.constant(0, wide, lanes)

        def tap(acc: Expr, x: Expr, ky: Expr, kx: Expr, channel: Expr) -> Expr:
            at = ((ky * packed[1] + kx) * spec.channels + channel) * group
            w = flat["weight"].load(at, lanes * group)
            if fours:
                return fours.step(acc, emit.bits(x, f"int8x{4 * lanes}"), w)
            return acc + emit.cast(x, wide, lanes) * emit.cast(w, wide, lanes)

        def finish(sums: list[Expr], places: list[Position]) -> list[Expr]:
            values = sums
            if spec.integer:
                scales = [flat["multiplier"].load(place.channel, lanes) for place in places]
                values = [emit.cast(acc, "float32", lanes) * scale for acc, scale in zip(sums, scales, strict=True)]
            residuals = [flat["residual"].load(p.index, lanes) for p in places] if "residual" in flat else None
            table = Rows(flat["table"], machine).of if "table" in flat else None
            slopes = [rounding.slopes(flat, p.channel, lanes) for p in places] if spec.epilogue.slopes else None
            return rounding.finish(values, residuals, spec.epilogue, spec.result_dtype, lanes, machine, table, slopes)

        loops.emit(flat["x"], flat["y"], start, tap, finish)

    arguments = constants.arguments(spec, packed, stored, spec.channels)
    return Kernel(emit.function(arguments, body), spec.result_shape, spec.result_dtype, pack, constants.arrange(spec))

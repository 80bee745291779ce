"""Maxima and means over windows, vectors along channels."""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import emit, exact, narrowing, rounding
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.epilogue import INTEGER
from graphopt.backends.tvm.schedules.sliding import Position, Sliding
from graphopt.backends.tvm.schedules.specs import Pool
from graphopt.backends.tvm.schedules.staging import Staging


def pool(spec: Pool, machine: Processor) -> Kernel:
    kernel = _maximum if spec.kind == "max" else _mean_of_codes if spec.result and spec.whole else _average
    body = kernel(spec, machine)
    arguments = {"x": (spec.shape, spec.data), "y": (spec.result_shape, spec.result_dtype)}
    return Kernel(emit.function(arguments, body), spec.result_shape, spec.result_dtype)


def _maximum(spec: Pool, machine: Processor) -> emit.Body:
    lanes = min(machine.lanes(spec.data), spec.shape[3])
    least = emit.lowest(spec.data)
    wide = "float32" if spec.data == "float16" else spec.data
    loops = Sliding(spec, Staging.of(spec, spec.data, fill=least), machine, lanes, wide)

    def body(x: Flat, y: Flat) -> None:
        loops.emit(
            x,
            y,
            start=lambda channel: emit.constant(least, wide, lanes),
            tap=lambda acc, value, ky, kx, channel: emit.maximum(acc, emit.cast(value, wide, lanes)),
            finish=lambda sums, places: [emit.cast(acc, spec.data, lanes) for acc in sums],
        )

    return body


def _mean_of_codes(spec: Pool, machine: Processor) -> emit.Body:
    """Over the whole image, in integers."""
    result, channels, pixels = spec.result, spec.shape[3], prod(spec.kernel)
    assert result is not None
    lanes = min(machine.lanes("int32"), channels)
    multiplier = float(np.float32(spec.scale) / (np.float32(spec.result_scale) * np.float32(pixels)))

    def start(channel: Expr) -> Expr:
        return emit.constant(-spec.zero_point * pixels, "int32", lanes)

    def added(acc: Expr, codes: Expr, *place: Expr) -> Expr:
        return acc + emit.cast(codes, "int32", lanes)

    def finish(sums: list[Expr], places: list[Position]) -> list[Expr]:
        values = [emit.cast(acc, "float32", lanes) * emit.constant(multiplier, "float32", lanes) for acc in sums]
        return rounding.to_codes(values, result, lanes, result.zero_point, machine)

    if isinstance(machine, Gpu):
        loops = Sliding(spec, Staging.of(spec, spec.data), machine, lanes, "int32")
        return lambda x, y: loops.emit(x, y, start, added, finish)
    vectors = min(narrowing.TOGETHER, channels // lanes)
    width = vectors * lanes
    blocks = -(-channels // width)

    def body(x: Flat, y: Flat) -> None:
        """Some vectors of channels together, pixel by pixel; the last ones are moved back, so that all are whole."""
        with emit.tasks(spec.shape[0] * blocks, prod(spec.shape), machine) as task:
            image, first = task // blocks, emit.let(emit.minimum(task % blocks * width, channels - width))
            sums = emit.Registers.of(vectors, "int32", lanes)
            for v in range(vectors):
                sums.set(v, start(first))
            with emit.serial(pixels) as pixel:
                at = (image * pixels + pixel) * channels + first
                for v in range(vectors):
                    sums.set(v, added(sums.get(v), x.load(at + v * lanes, lanes)))
            for v, value in enumerate(finish([sums.get(v) for v in range(vectors)], [])):
                y.store(value, image * channels + first + v * lanes, lanes)

    return body


def _average(spec: Pool, machine: Processor) -> emit.Body:
    """In float32, elements from the first row to the last."""
    lanes = min(machine.lanes("float32"), spec.shape[3])
    fill = spec.zero_point if spec.data in INTEGER else 0
    loops = Sliding(spec, Staging.of(spec, spec.data, fill=fill), machine, lanes, "float32")

    def tap(acc: Expr, value: Expr, ky: Expr, kx: Expr, channel: Expr) -> Expr:
        if spec.data not in INTEGER:
            return acc + emit.cast(value, "float32", lanes)
        steps = emit.cast(value, "int32", lanes) - emit.constant(spec.zero_point, "int32", lanes)
        return acc + exact.product(
            emit.cast(steps, "float32", lanes), emit.constant(spec.scale, "float32", lanes), lanes
        )

    def finish(sums: list[Expr], places: list[Position]) -> list[Expr]:
        counts = [emit.splat(_elements(spec, place), lanes) for place in places]
        means = [exact.quotient(acc, count) for acc, count in zip(sums, counts, strict=True)]
        if spec.result is None:
            return [emit.cast(mean, spec.data, lanes) for mean in means]
        scale, zero_point = (
            emit.constant(number, "float32", lanes) for number in (spec.result_scale, spec.result.zero_point)
        )
        return rounding.to_codes([exact.quotient(m, scale) + zero_point for m in means], spec.result, lanes, 0, machine)

    def body(x: Flat, y: Flat) -> None:
        loops.emit(x, y, lambda channel: emit.constant(0, "float32", lanes), tap, finish)

    return body


def _elements(spec: Pool, place: Position) -> Expr:
    """How many a window's mean is over, float32."""
    if spec.count_padding or not any(p for pair in spec.padding for p in pair):
        return emit.constant(prod(spec.kernel), "float32")
    sides = zip((place.row, place.column), spec.shape[1:3], spec.padding, spec.kernel, spec.stride, strict=True)
    rows, columns = (
        emit.minimum(at * s + k, size + before) - emit.maximum(at * s, before) for at, size, (before, _), k, s in sides
    )
    return emit.cast(rows * columns, "float32")

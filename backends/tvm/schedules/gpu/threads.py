"""One result a thread, neighbouring threads on neighbouring channels, so that what they load lies side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

from tvm import tirx
from tvm.tirx.script.builder import ir as tir

from graphopt.backends.tvm.machine import Gpu
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Registers
from graphopt.backends.tvm.schedules.specs import Conv, Pool


@contextmanager
def launched(blocks: int, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """(block, thread) of a grid of one dimension."""
    with tir.launch_thread("blockIdx.x", blocks) as block, tir.launch_thread("threadIdx.x", threads) as thread:
        yield block, thread


@contextmanager
def each(count: int, gpu: Gpu) -> Iterator[Expr]:
    """An index below `count` for every thread."""
    threads = min(gpu.threads, -(-count // 32) * 32)
    with launched(-(-count // threads), threads) as (block, thread):
        index = emit.let(block * threads + thread)
        if count % threads == 0:
            yield index
        else:
            with tir.If(index < count), tir.Then():
                yield index


def windows(
    spec: Conv | Pool,
    gpu: Gpu,
    fill: float,
    sum: str,
    x: Flat,
    y: Flat,
    start: Callable[[Expr], Expr],
    tap: Callable[[Expr, Expr, Expr, Expr, Expr], Expr],
    finish: Callable[[Expr, Expr, Expr, Expr, Expr], Expr],
) -> None:
    """Fill y: for each result the sum over its window, whose elements outside of the image are `fill`.

    start(channel) -> accumulator; tap(accumulator, operand, ky, kx, channel) -> accumulator;
    finish(accumulator, row, column, channel, index) -> result.
    """
    _, rows, columns, channels = spec.result_shape
    _, height, width, c = spec.shape
    (top, _), (left, _) = spec.padding
    padded = any(p for pair in spec.padding for p in pair)
    with each(prod(spec.result_shape), gpu) as index:
        channel = emit.let(index % channels)
        column = emit.let(index // channels % columns)
        row = emit.let(index // (channels * columns) % rows)
        image = emit.let(index // (channels * columns * rows))
        total = Registers.of(1, sum, 1)
        total.set(0, start(channel))
        with emit.serial(spec.kernel[0]) as ky, emit.serial(spec.kernel[1]) as kx:
            at_row = emit.let(row * spec.stride[0] + ky * spec.dilation[0] - top)
            at_column = emit.let(column * spec.stride[1] + kx * spec.dilation[1] - left)
            at = ((image * height + at_row) * width + at_column) * c + channel
            dtype = "float32" if x.dtype == "float16" else x.dtype
            value = emit.cast(x.load(at), dtype)
            if padded:
                inside = within(at_row, height) & within(at_column, width)
                value = tirx.if_then_else(inside, value, emit.constant(fill, dtype))
            total.set(0, tap(total.get(0), value, ky, kx, channel))
        y.store(finish(total.get(0), row, column, channel, index), index)


def within(index: Expr, size: int) -> Expr:
    return (index >= 0) & (index < size)

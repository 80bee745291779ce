"""Convolutions and linear layers as implicit matrix products, whose tiles go through shared memory.

    y[m, n] = sum over k of A[m, k] B[k, n]      m: pixel (image, row, column), n: channel, k: (ky, kx, c), c innermost

A is never written down: a thread that fills its part of a tile of A computes which element of the image, or of its padding, it
is. A block of threads computes `rows` x `columns` results, `step` products of each at a time: A and B tiles to shared memory, a
barrier, then every thread multiplies `down` values of A by `across` of B in registers. With `dp4a`, four 8-bit codes lie in one
word, and one instruction adds four products. Weights are packed as B, [group, k, n], padded with zeros to whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as tir

from graphopt.backends.tvm.machine import Gpu
from graphopt.backends.tvm.schedules import constants, emit, rounding
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel, Registers
from graphopt.backends.tvm.schedules.gpu.threads import within
from graphopt.backends.tvm.schedules.lookup import Rows
from graphopt.backends.tvm.schedules.specs import Conv


@dataclass(frozen=True)
class Tile:
    """What a block computes: `rows` pixels x `columns` channels, `down` x `across` a thread, in steps of `step` elements."""

    rows: int
    columns: int
    down: int
    across: int
    step: int = 16

    @property
    def threads(self) -> int:
        return self.rows // self.down * (self.columns // self.across)


TILES = (
    Tile(128, 64, 8, 4),
    Tile(64, 64, 4, 4),
    Tile(64, 32, 4, 4),
    Tile(32, 32, 4, 2),
    Tile(16, 32, 2, 2),
    Tile(8, 32, 1, 2),
)
"""From the one that loads least for what it multiplies to the one that makes most blocks."""


def conv(spec: Conv, gpu: Gpu) -> Kernel:
    """Any convolution; depthwise ones have a better kernel."""
    plan = GemmPlan(spec, gpu)
    return Kernel(plan.function(), spec.result_shape, spec.result_dtype, plan.pack, constants.arrange(spec))


@dataclass(frozen=True)
class GemmPlan:
    """How one layer is computed."""

    spec: Conv
    gpu: Gpu

    @cached_property
    def depth(self) -> int:
        """Elements of the sum in one word."""
        return 4 if self.spec.integer and self.gpu.dot == "dp4a" else 1

    @property
    def sum(self) -> str:
        return "int32" if self.spec.integer else "float32"

    @property
    def data(self) -> str:
        """Type of A in shared memory."""
        return "int32" if self.depth == 4 else self.spec.data

    @property
    def stored(self) -> str:
        """Type of B, the weights."""
        return "int32" if self.depth == 4 else "int8" if self.spec.integer else self.spec.data

    @property
    def shift(self) -> int:
        """What shared codes are less than the data's: `dp4a` multiplies signed by signed."""
        return 128 if self.depth == 4 and self.spec.data == "uint8" else 0

    @property
    def pixels(self) -> int:
        return prod(self.spec.result_shape[:3])

    @property
    def channels(self) -> int:
        """Of the result, in one group."""
        return self.spec.channels // self.spec.groups

    @property
    def taken(self) -> int:
        """Channels of the data that one tap takes, in words."""
        return -(-self.spec.shape[3] // self.spec.groups // self.depth)

    @property
    def length(self) -> int:
        """Of the sum, in words."""
        return prod(self.spec.kernel) * self.taken

    @cached_property
    def tile(self) -> Tile:
        """The largest that fits and leaves a block for every multiprocessor; channels it would compute for nothing count."""
        fitting = [t for t in TILES if t.threads <= self.gpu.threads and self._shared(t) <= self.gpu.shared_bytes]
        enough = [t for t in fitting if prod(self._grid(t)) >= 2 * self.gpu.multiprocessors] or fitting[-1:]
        waste = {t: self._grid(t)[0] * t.rows * self._grid(t)[1] * t.columns for t in enough}
        return next(t for t in enough if waste[t] <= 1.25 * min(waste.values()))

    def _shared(self, tile: Tile) -> int:
        return tile.step * (tile.rows + 1 + tile.columns) * np.dtype(self.stored).itemsize

    def _grid(self, tile: Tile) -> tuple[int, int]:
        """Tiles along pixels, and along the channels of all groups."""
        return -(-self.pixels // tile.rows), -(-self.channels // tile.columns) * self.spec.groups

    @property
    def blocks(self) -> int:
        """Tiles along the channels of one group."""
        return -(-self.channels // self.tile.columns)

    @property
    def steps(self) -> int:
        return -(-self.length // self.tile.step)

    # ---- Constants --------------------------------------------------------------------------------------------------

    @property
    def packed(self) -> tuple[int, int, int]:
        return self.spec.groups, self.steps * self.tile.step, self.blocks * self.tile.columns

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        spec, depth = self.spec, self.depth
        constants.check(spec, weight, bias, multiplier)
        by_tap = weight.transpose(0, 2, 3, 1)
        by_tap = np.pad(by_tap, (*((0, 0),) * 3, (0, self.taken * depth - by_tap.shape[3])))
        words = by_tap.reshape(spec.groups, self.channels, self.length, depth)
        if depth == 4:
            words = np.ascontiguousarray(words, np.int8).view(np.int32)
        _, k, n = self.packed
        b = np.pad(words[..., 0].transpose(0, 2, 1), ((0, 0), (0, k - self.length), (0, n - self.channels)))
        folded = constants.vectors(spec, weight, bias, multiplier, self.shift)
        return np.ascontiguousarray(b, dtype=self.stored), *(self._padded(values) for values in folded)

    def _padded(self, values: Array) -> Array:
        grouped = values.reshape(self.spec.groups, self.channels)
        return np.ascontiguousarray(np.pad(grouped, ((0, 0), (0, self.packed[2] - self.channels))).reshape(-1))

    # ---- Code -------------------------------------------------------------------------------------------------------

    def function(self) -> object:
        arguments = constants.arguments(self.spec, self.packed, self.stored, self.spec.groups * self.packed[2])
        return emit.function(arguments, lambda *flats: self._body(dict(zip(arguments, flats, strict=True))))

    def _body(self, flat: dict[str, Flat]) -> None:
        tile = self.tile
        down, across = self._grid(tile)
        with (
            tir.launch_thread("blockIdx.x", down) as block_row,
            tir.launch_thread("blockIdx.y", across) as block_column,
            tir.launch_thread("threadIdx.x", tile.threads) as thread,
        ):
            a = emit.shared("tile_a", tile.step * (tile.rows + 1), self.data)
            b = emit.shared("tile_b", tile.step * tile.columns, self.stored)
            sums = Registers.of(tile.down * tile.across, self.sum, 1)
            group, column = block_column // self.blocks, block_column % self.blocks * tile.columns
            mine = (thread // (tile.columns // tile.across), thread % (tile.columns // tile.across))
            for i in range(tile.down * tile.across):
                sums.set(i, emit.constant(0, self.sum))
            with emit.serial(self.steps) as step:
                self._fill_a(flat["x"], a, thread, block_row * tile.rows, step * tile.step, group)
                self._fill_b(flat["weight"], b, thread, (group * self.packed[1] + step * tile.step), column)
                barrier()
                with emit.serial(tile.step) as k:
                    self._multiply(a, b, sums, k, *mine)
                barrier()
            self._store(flat, sums, block_row * tile.rows + mine[0], column + mine[1], group)

    def _fill_a(self, x: Flat, a: Flat, thread: Expr, first: Expr, start: Expr, group: Expr) -> None:
        """Neighbouring threads load neighbouring channels of a pixel, and store into different banks, for rows are odd."""
        tile = self.tile
        for part in range(-(-tile.rows * tile.step // tile.threads)):
            at = emit.let(thread + part * tile.threads)
            k, m = emit.let(start + at % tile.step), emit.let(first + at // tile.step)
            with guard(at < tile.rows * tile.step, tile.rows * tile.step % tile.threads != 0):
                a.store(self._element(x, m, k, group), at % tile.step * (tile.rows + 1) + at // tile.step)

    def _element(self, x: Flat, m: Expr, k: Expr, group: Expr) -> Expr:
        """A[m, k], or what padding holds."""
        spec = self.spec
        _, height, width, c = spec.shape
        _, rows, columns, _ = spec.result_shape
        tap, first = k // self.taken, k % self.taken * self.depth
        row = m // columns % rows * spec.stride[0] + tap // spec.kernel[1] * spec.dilation[0] - spec.padding[0][0]
        column = m % columns * spec.stride[1] + tap % spec.kernel[1] * spec.dilation[1] - spec.padding[1][0]
        row, column = emit.let(row), emit.let(column)
        inside = (k < self.length) & (m < self.pixels)
        if any(p for pair in spec.padding for p in pair):
            inside = inside & within(row, height) & within(column, width)
        taken = c // spec.groups
        at = ((m // (columns * rows) * height + row) * width + column) * c + group * taken + first
        if self.depth == 1:
            return tirx.if_then_else(inside, x.load(at), emit.constant(spec.zero_point, x.dtype))
        if taken % self.depth == 0:
            word = tirx.if_then_else(inside, emit.bits(x.load(at, 4), "int32"), self._word(spec.zero_point))
            return word ^ self._word(self.shift)
        word = emit.constant(0, "int32")
        for i in range(self.depth):
            code = tirx.if_then_else(
                inside & (first + i < taken), x.load(at + i), emit.constant(spec.zero_point, x.dtype)
            )
            word = word | ((emit.cast(code, "int32") - self.shift & 255) << 8 * i)
        return word

    def _word(self, code: int) -> Expr:
        """Four times the same code."""
        return emit.constant(int(np.full(4, code).astype(np.uint8).view(np.int32)[0]), "int32")

    def _fill_b(self, weight: Flat, b: Flat, thread: Expr, first: Expr, column: Expr) -> None:
        tile, n = self.tile, self.packed[2]
        for part in range(-(-tile.columns * tile.step // tile.threads)):
            at = emit.let(thread + part * tile.threads)
            with guard(at < tile.columns * tile.step, tile.columns * tile.step % tile.threads != 0):
                b.store(weight.load((first + at // tile.columns) * n + column + at % tile.columns), at)

    def _multiply(self, a: Flat, b: Flat, sums: Registers, k: Expr, row: Expr, column: Expr) -> None:
        tile = self.tile
        down, across = tile.rows // tile.down, tile.columns // tile.across
        left = [emit.let(self._wide(a.load(k * (tile.rows + 1) + row + i * down))) for i in range(tile.down)]
        right = [emit.let(self._wide(b.load(k * tile.columns + column + j * across))) for j in range(tile.across)]
        for i, j in product(range(tile.down), range(tile.across)):
            one = i * tile.across + j
            if self.depth == 4:
                sums.set(one, tirx.call_pure_extern("int32", "__dp4a", left[i], right[j], sums.get(one)))
            else:
                sums.set(one, sums.get(one) + left[i] * right[j])

    def _wide(self, value: Expr) -> Expr:
        return value if self.depth == 4 or self.stored == self.sum else emit.cast(value, self.sum)

    def _store(self, flat: dict[str, Flat], sums: Registers, row: Expr, column: Expr, group: Expr) -> None:
        spec, tile = self.spec, self.tile
        down, across = tile.rows // tile.down, tile.columns // tile.across
        ragged = self.pixels % tile.rows != 0 or self.channels % tile.columns != 0
        for i, j in product(range(tile.down), range(tile.across)):
            m, n = emit.let(row + i * down), emit.let(column + j * across)
            with guard((m < self.pixels) & (n < self.channels), needed=ragged):
                value, at = sums.get(i * tile.across + j), m * spec.channels + group * self.channels + n
                if "bias" in flat:
                    value = value + flat["bias"].load(group * self.packed[2] + n)
                if spec.integer:
                    scale = flat["multiplier"].load(group * self.packed[2] + n)
                    value = emit.cast(value, "float32") * scale
                residual = flat["residual"].load(at) if "residual" in flat else None
                table = Rows(flat["table"], self.gpu).of if "table" in flat else None
                added = None if residual is None else [residual]
                slopes = [rounding.slopes(flat, group * self.packed[2] + n, 1)] if spec.epilogue.slopes else None
                (result,) = rounding.finish(
                    [value], added, spec.epilogue, spec.result_dtype, 1, self.gpu, table, slopes
                )
                flat["y"].store(result, at)


def barrier() -> None:
    tir.evaluate(tirx.op.tvm_storage_sync("shared"))


@contextmanager
def guard(condition: Expr, needed: bool) -> Iterator[None]:
    """What is inside happens only where the condition holds; `needed`: where it may not."""
    if not needed:
        yield
        return
    with tir.If(condition), tir.Then():
        yield

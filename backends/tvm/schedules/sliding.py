"""Windows that slide over each channel by itself: the loops of depthwise convolution and pooling.

A vector holds neighbouring channels of one pixel. The last vector of a pixel is moved back over the one before, so that every
vector is full; with fewer channels than lanes the vector is shorter. Windows of up to 25 elements are unrolled, so that what
neighbouring windows share is loaded once. On a GPU every result has a thread of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from graphopt.backends.tvm.machine import Gpu, Machine, Processor
from graphopt.backends.tvm.schedules import emit, tiles
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Registers
from graphopt.backends.tvm.schedules.gpu import threads
from graphopt.backends.tvm.schedules.specs import Conv, Pool
from graphopt.backends.tvm.schedules.staging import Staging
from graphopt.backends.tvm.schedules.tiles import Tile

UNROLLED = 25


@dataclass(frozen=True)
class Position:
    """Where a result lies: its row and column (counted in results), its first channel, and its index."""

    row: Expr
    column: Expr
    channel: Expr
    index: Expr


@dataclass(frozen=True)
class Sliding:
    """Loops over a result.

    Attributes:
        lanes: channels in a vector.
        sum: dtype of the accumulators.
        group: horizontal taps that one step takes; 1, or as many as `gather` puts together.
        chosen: takes the place of the rule's tile.
    """

    spec: Conv | Pool
    staging: Staging
    machine: Processor
    lanes: int
    sum: str
    group: int = 1
    chosen: Tile | None = None

    @cached_property
    def tile(self) -> Tile:
        return self.chosen or self.candidates[0]

    @property
    def candidates(self) -> list[Tile]:
        """The best by rule first."""
        assert isinstance(self.machine, Machine)
        _, rows, columns, channels = self.spec.result_shape
        if prod(self.spec.kernel) > UNROLLED:
            return [Tile(1, 1, 1)]
        vectors = -(-channels // self.lanes)
        return tiles.for_windows(rows, columns, vectors, self.spec.kernel, self.spec.stride, self.machine, self.group)

    def emit(
        self,
        x: Flat,
        y: Flat,
        start: Callable[[Expr], Expr],
        tap: Callable[[Expr, Expr, Expr, Expr, Expr], Expr],
        finish: Callable[[list[Expr], list[Position]], list[Expr]],
    ) -> None:
        """Fill y.

        start(channel) -> accumulator; tap(accumulator, operand, ky, tap's group, channel) -> accumulator;
        finish(accumulators, their places) -> results.
        """
        if isinstance(self.machine, Gpu):

            def finished(acc: Expr, *place: Expr) -> Expr:
                return finish([acc], [Position(*place)])[0]

            threads.windows(self.spec, self.machine, self.staging.fill, self.sum, x, y, start, tap, finished)
            return
        n, rows, columns, channels = self.spec.result_shape
        tile, lanes = self.tile, self.lanes
        down, across, blocks = -(-rows // tile.rows), -(-columns // tile.columns), -(-channels // lanes)
        source = self.staging.emit(x, self.machine)
        work = n * rows * columns * channels * prod(self.spec.kernel)
        with emit.tasks(n * down * across, work, self.machine) as task, emit.serial(blocks) as block:
            image, step = task // (down * across), task % across
            row = emit.minimum(task // across % down * tile.rows, rows - tile.rows)
            column = emit.minimum(step * tile.columns, columns - tile.columns)
            channel = emit.minimum(block * lanes, channels - lanes)
            sums = Registers.of(len(tile.pixels), self.sum, lanes)
            for p in range(len(tile.pixels)):
                sums.set(p, start(channel))
            self._taps(source, sums, image, row, column, channel, tap)
            places = []
            for i, j in tile.pixels:
                index = ((image * rows + row + i) * columns + column + j) * channels + channel
                places.append(Position(row + i, column + j, channel, index))
            results = finish([sums.get(p) for p in range(len(places))], places)
            for place, result in zip(places, results, strict=True):
                y.store(result, place.index, lanes)

    def _taps(
        self,
        x: Flat,
        sums: Registers,
        image: Expr,
        row: Expr,
        column: Expr,
        channel: Expr,
        tap: Callable[[Expr, Expr, Expr, Expr, Expr], Expr],
    ) -> None:
        (kh, kw), (sh, sw), (dh, dw) = self.spec.kernel, self.spec.stride, self.spec.dilation
        c, lanes = self.spec.shape[3], self.lanes
        width = self.staging.columns * c
        origin = (image * self.staging.rows + row * sh) * width + column * (sw * c) + channel

        def update(p: int, operand: Expr, ky: Expr, kx: Expr) -> None:
            sums.set(p, tap(sums.get(p), operand, ky, kx, channel))

        if kh * kw > UNROLLED:
            with emit.serial(kh) as ky, emit.serial(kw) as kx:
                update(0, x.load(origin + ky * (dh * width) + kx * (dw * c), lanes), ky, kx)
            return
        groups = range(0, kw, self.group)
        operands: dict[tuple[int, int, int], Expr] = {}
        for ky, kx, (p, (i, j)) in product(range(kh), groups, enumerate(self.tile.pixels)):
            taken = min(self.group, kw - kx)
            at = (i * sh + ky * dh, j * sw + kx * dw, taken)
            if at not in operands:
                first = origin + (at[0] * width + at[1] * c)
                operands[at] = emit.let(self._gather([x.load(first + t * dw * c, lanes) for t in range(taken)]))
            update(p, operands[at], ky, kx // self.group)

    def _gather(self, taps: list[Expr]) -> Expr:
        """One tap as it is; several as the bytes of one 32-bit lane."""
        if self.group == 1:
            return taps[0]
        lanes = self.lanes
        packed = emit.cast(taps[0], "int32", lanes)
        for t, value in enumerate(taps[1:], 1):
            packed = packed | (emit.cast(value, "int32", lanes) << emit.constant(8 * t, "int32", lanes))
        return packed

"""Convolutions and linear layers: sums of a register tile of pixels x channels, over the kernel's rows and what lies in one row.

    y[p, o] = sum over ky of sum over k of x[row(p) + ky, column(p) * C + k] w[o, ky, k]           k = (kx, c), contiguous in NHWC

so a 7x7 kernel over 3 channels has rows of 21 elements, and a 1x1 convolution is a matrix product. With groups or horizontal
dilation kx is a loop of its own. Weights lie as they are read: [block of channels, ky(, kx), k / depth, channel in block, depth],
padded with zeros. Blocks are the inner loop where all weights stay in the second-level cache, else pixels are, and while the
pixels of one block are computed the weights of the next are asked for, a few lines a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import constants, dots, emit, rounding, tiles
from graphopt.backends.tvm.schedules.dots import Dot
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel, Registers
from graphopt.backends.tvm.schedules.lookup import Rows
from graphopt.backends.tvm.schedules.specs import Conv
from graphopt.backends.tvm.schedules.staging import Staging
from graphopt.backends.tvm.schedules.tiles import Tile

CACHE_LINE = 64  # bytes


def conv(spec: Conv, machine: Machine, tile: Tile | None = None) -> Kernel:
    """Any convolution; depthwise ones have a better kernel. `tile`: one of `candidates`; None: the first."""
    plan = DirectPlan(spec, machine, tile)
    return Kernel(plan.function(), spec.result_shape, spec.result_dtype, plan.pack, constants.arrange(spec))


def candidates(spec: Conv, machine: Machine) -> list[Tile]:
    """The tiles a convolution may have, the best by rule first."""
    return DirectPlan(spec, machine).candidates


def as_rows(spec: Conv) -> Conv:
    """A 1x1 convolution with its pixels in one row."""
    n, h, w, c = spec.shape
    plain = spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding == ((0, 0), (0, 0))
    return replace(spec, shape=(1, 1, n * h * w, c)) if plain else spec


@dataclass(frozen=True)
class Ahead:
    """Weights to ask for: from an index on, so many elements with every step."""

    start: Expr
    stride: int

    def emit(self, weights: Flat, step: Expr, steps: int) -> None:
        line = CACHE_LINE // np.dtype(weights.dtype).itemsize
        for offset in range(0, steps * self.stride, line):
            emit.prefetch(weights, self.start + step * self.stride + offset)


@dataclass(frozen=True)
class DirectPlan:
    """How one layer is computed. `outer` is its spec as given; `chosen` replaces the rule's tile."""

    outer: Conv
    machine: Machine
    chosen: Tile | None = None

    @cached_property
    def spec(self) -> Conv:
        """As computed."""
        return as_rows(self.outer)

    @cached_property
    def dot(self) -> Dot:
        return dots.fitting(self.spec.data, self.group_channels, self.machine)

    @cached_property
    def staging(self) -> Staging:
        overreaches = self.runs[1] % self.dot.depth != 0
        return Staging.of(self.spec, self.dot.data, self.spec.zero_point, overreaches=overreaches)

    @cached_property
    def tile(self) -> Tile:
        return self.chosen or self.candidates[0]

    @property
    def candidates(self) -> list[Tile]:
        _, rows, columns, _ = self.spec.result_shape
        vectors = -(-self.group_channels // self.dot.lanes)
        element = np.dtype(self.dot.weight).itemsize
        weights = self.spec.kernel[0] * self.runs[0] * self.steps * self.dot.depth * self.dot.lanes * element
        return tiles.for_sums(rows, columns, vectors, weights, self.machine, self.dot.scratch)

    @property
    def group_channels(self) -> int:
        """Of the result."""
        return self.spec.channels // self.spec.groups

    @property
    def block(self) -> int:
        """Channels of a tile."""
        return self.tile.vectors * self.dot.lanes

    @property
    def blocks(self) -> int:
        """Of one group."""
        return -(-self.group_channels // self.block)

    @cached_property
    def runs(self) -> tuple[int, int]:
        """(kx, k): the sum's inner loops."""
        kw, c = self.spec.kernel[1], self.spec.shape[3] // self.spec.groups
        return (1, kw * c) if self.spec.groups == 1 and self.spec.dilation[1] == 1 else (kw, c)

    @property
    def steps(self) -> int:
        return -(-self.runs[1] // self.dot.depth)

    # ---- Constants --------------------------------------------------------------------------------------------------

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        spec, dot = self.spec, self.dot
        constants.check(spec, weight, bias, multiplier)
        kx, k = self.runs
        by_row = weight.transpose(0, 2, 3, 1).reshape(spec.groups, self.group_channels, spec.kernel[0], kx, k)
        missing = (self.blocks * self.block - self.group_channels, self.steps * dot.depth - k)
        by_row = np.pad(by_row, ((0, 0), (0, missing[0]), (0, 0), (0, 0), (0, missing[1])))
        split = by_row.reshape(spec.groups * self.blocks, self.block, spec.kernel[0], kx, self.steps, dot.depth)
        packed = np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1, 5), dtype=dot.weight)
        folded = constants.vectors(spec, weight, bias, multiplier, self.staging.shift)
        return packed, *(self._padded(values) for values in folded)

    def _padded(self, values: Array) -> Array:
        """[O] -> [groups * blocks * block]."""
        grouped = values.reshape(self.spec.groups, self.group_channels)
        missing = self.blocks * self.block - self.group_channels
        return np.ascontiguousarray(np.pad(grouped, ((0, 0), (0, missing))).reshape(-1))

    # ---- Code -------------------------------------------------------------------------------------------------------

    def function(self) -> object:
        spec, dot = self.spec, self.dot
        packed = (spec.groups * self.blocks, spec.kernel[0], self.runs[0], self.steps, self.block, dot.depth)
        arguments = constants.arguments(self.outer, packed, dot.weight, spec.groups * self.blocks * self.block)
        return emit.function(arguments, lambda *flats: self._body(dict(zip(arguments, flats, strict=True))))

    def _body(self, flat: dict[str, Flat]) -> None:
        x = self.staging.emit(flat["x"], self.machine)
        n, rows, columns, _ = self.spec.result_shape
        down, across = -(-rows // self.tile.rows), -(-columns // self.tile.columns)
        pixels, blocks = n * down * across, self.spec.groups * self.blocks
        with emit.tasks(pixels * blocks, self.spec.macs, self.machine) as task:
            if self._weights_stay_cached:
                pixel, block = task // blocks, task % blocks
            else:
                block, pixel = task // pixels, task % pixels
            image, row, column = pixel // (down * across), pixel // across % down, pixel % across
            row = emit.minimum(row * self.tile.rows, rows - self.tile.rows)
            column = emit.minimum(column * self.tile.columns, columns - self.tile.columns)
            ahead = self._ahead(block, pixel, pixels) if self._prefetches(pixels) else None
            sums = self._sums(flat, x, image, row, column, block, ahead)
            self._stores(flat, sums, (image * rows + row) * columns + column, block)

    @property
    def _block_weights(self) -> int:
        """Elements of one block's weights."""
        return self.spec.kernel[0] * self.runs[0] * self.steps * self.block * self.dot.depth

    @property
    def _weights_stay_cached(self) -> bool:
        count = self.spec.groups * self.blocks * self._block_weights
        return count * np.dtype(self.dot.weight).itemsize <= self.machine.l2_bytes // 2

    def _prefetches(self, pixels: int) -> bool:
        blocks = self.spec.groups * self.blocks
        return self.machine.prefetches and not self._weights_stay_cached and pixels > 1 and blocks > 1

    def _ahead(self, block: Expr, pixel: Expr, pixels: int) -> Ahead:
        """A tile's share of the next block's weights."""
        after = emit.minimum(block + 1, self.spec.groups * self.blocks - 1)
        stride = -(-self.block * self.dot.depth // pixels)
        share = self._block_weights // (self.block * self.dot.depth) * stride
        return Ahead(after * self._block_weights + emit.minimum(pixel * share, self._block_weights - share), stride)

    def _sums(
        self, flat: dict[str, Flat], x: Flat, image: Expr, row: Expr, column: Expr, block: Expr, ahead: Ahead | None
    ) -> Registers:
        spec, dot, tile = self.spec, self.dot, self.tile
        c, kh, (kx, _) = spec.shape[3], spec.kernel[0], self.runs
        width = self.staging.columns * c
        sums = Registers.of(len(tile.pixels) * tile.vectors, dot.sum, dot.lanes)
        for p, v in product(range(len(tile.pixels)), range(tile.vectors)):
            start = emit.constant(0, dot.sum, dot.lanes)
            if "bias" in flat:
                start = flat["bias"].load(block * self.block + v * dot.lanes, dot.lanes)
            sums.set(p * tile.vectors + v, start)
        origin = (image * self.staging.rows + row * spec.stride[0]) * width + column * (spec.stride[1] * c)
        origin = origin + block // self.blocks * (c // spec.groups)
        with emit.serial(kh) as ry, emit.serial(kx) as rx:
            here = origin + ry * (spec.dilation[0] * width) + rx * (spec.dilation[1] * c)
            first = (ry * kx + rx) * self.steps
            weights = self._first_weight(block) + first * (self.block * dot.depth)

            def some(k: Expr, steps: int) -> None:
                if ahead:
                    ahead.emit(flat["weight"], first + k, steps)
                at = here + k * dot.depth
                pixels = [at + (i * spec.stride[0] * width + j * spec.stride[1] * c) for i, j in tile.pixels]
                loaded = [dot.load(x, pixel, steps) for pixel in pixels]
                if steps > 1:
                    loaded = [emit.let(vector) for vector in loaded]
                for s, p in product(range(steps), range(len(pixels))):
                    operand = dot.operand(loaded[p], s, steps)
                    for v in range(tile.vectors):
                        channel = weights + ((k + s) * self.block + v * dot.lanes) * dot.depth
                        one = p * tile.vectors + v
                        sums.set(
                            one, dot.step(sums.get(one), operand, flat["weight"].load(channel, dot.depth * dot.lanes))
                        )

            emit.in_vectors(self.steps, dot.together(self.machine), some)
        return sums

    def _first_weight(self, block: Expr) -> Expr:
        """Where those of a block begin."""
        return block * self._block_weights

    def _stores(self, flat: dict[str, Flat], sums: Registers, pixel: Expr, block: Expr) -> None:
        """Finish and write a tile; the last block of a group may hold fewer channels."""
        rest = self.group_channels - (self.blocks - 1) * self.block
        if rest == self.block:
            self._store(flat, sums, pixel, block, self.block)
        elif self.blocks == 1:
            self._store(flat, sums, pixel, block, rest)
        else:
            with emit.choice(block % self.blocks == self.blocks - 1) as (then, otherwise):
                with then:
                    self._store(flat, sums, pixel, block, rest)
                with otherwise:
                    self._store(flat, sums, pixel, block, self.block)

    def _store(self, flat: dict[str, Flat], sums: Registers, pixel: Expr, block: Expr, channels: int) -> None:
        spec, lanes, columns = self.spec, self.dot.lanes, self.spec.result_shape[2]
        first = block // self.blocks * self.group_channels + block % self.blocks * self.block
        places = list(
            product(range(len(self.tile.pixels)), range(-(-channels // lanes)))
        )  # neighbours in memory are neighbours

        def width(v: int) -> int:
            return min(lanes, channels - v * lanes)

        def at(p: int, v: int) -> Expr:
            i, j = self.tile.pixels[p]
            return (pixel + (i * columns + j)) * spec.channels + first + v * lanes

        values = [sums.get(p * self.tile.vectors + v) for p, v in places]
        if spec.integer:
            scales = [flat["multiplier"].load(block * self.block + v * lanes, lanes) for _, v in places]
            values = [emit.cast(value, "float32", lanes) * scale for value, scale in zip(values, scales, strict=True)]
        residuals = None
        if "residual" in flat:
            residuals = [emit.load_some(flat["residual"], at(p, v), width(v), lanes) for p, v in places]
        slopes = None
        if spec.epilogue.slopes:
            slopes = [rounding.slopes(flat, block * self.block + v * lanes, lanes) for _, v in places]
        table = Rows(flat["table"], self.machine).of if "table" in flat else None
        results = rounding.finish(
            values, residuals, spec.epilogue, spec.result_dtype, lanes, self.machine, table, slopes
        )
        for (p, v), result in zip(places, results, strict=True):
            emit.store_some(flat["y"], result, at(p, v), width(v), lanes)

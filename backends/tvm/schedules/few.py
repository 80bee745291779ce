"""Layers of codes whose weights are stored in one bit or two: expanded block by block, then as any other.

    two bits    bit 0: above, bit 1: below        w = above[o] if bit 0, -below[o] if bit 1, else 0
    one bit                                       w = -1 where it is set, else 1

The weights of one block of channels become bytes in memory that stays in the cache, and all pixels are computed with them: what
reads them is `direct`, instruction for instruction, so that sums are the same. A weight is expanded once for all pixels, which
costs about as much as eight of its products; a layer of few pixels is faster with weights of 8 bits (`pays`).

A byte holds one weight each of 4 (or 8) vectors that follow one another, so that a shift and a mask give a whole vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import constants, direct, emit
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.specs import Conv
from graphopt.backends.tvm.schedules.tiles import Tile

WORTH = 150  # pixels: with 196 a layer takes 1.00 to 1.02 of its time with weights of 8 bits, with 49 1.04 to 1.12


def conv(spec: Conv, machine: Machine, tile: Tile | None = None) -> Kernel:
    """A layer of `applies`."""
    plan = FewPlan(spec, machine, tile)
    return Kernel(plan.function(), spec.result_shape, spec.result_dtype, plan.pack, constants.arrange(spec))


def applies(spec: Conv) -> bool:
    """Weights of few bits, of which more than one channel of the data has."""
    return spec.bits < 8 and (spec.groups == 1 or spec.shape[3] > spec.groups)


def pixels(spec: Conv) -> int:
    """That each weight is used for."""
    images, rows, columns, _ = spec.result_shape
    return images * rows * columns


@dataclass(frozen=True)
class FewPlan(direct.DirectPlan):
    """How one layer is computed."""

    @property
    def planes(self) -> int:
        """Weights to a byte."""
        return 8 // self.outer.bits

    @property
    def vector(self) -> int:
        """Weights that one step reads at once."""
        return self.dot.lanes * self.dot.depth

    @property
    def chunks(self) -> int:
        """Of a block: `planes` vectors each."""
        return -(-self._block_weights // (self.planes * self.vector))

    # ---- Constants --------------------------------------------------------------------------------------------------

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        spec = self.spec
        packed, *vectors = super().pack(weight, bias, multiplier)
        by_block = packed.reshape(spec.groups * self.blocks, -1).astype(np.int8)
        codes = (
            (by_block < 0).astype(np.uint8) if spec.bits == 1 else (by_block > 0) + 2 * (by_block < 0).astype(np.uint8)
        )
        missing = self.chunks * self.planes * self.vector - codes.shape[1]
        planes = np.pad(codes, ((0, 0), (0, missing))).reshape(len(codes), self.chunks, self.planes, self.vector)
        shifts = (spec.bits * np.arange(self.planes, dtype=np.uint8))[None, None, :, None]
        stored = np.bitwise_or.reduce(planes.astype(np.uint8) << shifts, axis=2).astype(np.uint8)
        return np.ascontiguousarray(stored), *self._ends(weight), *vectors

    def _ends(self, weight: Array) -> tuple[Array, ...]:
        """The numbers above and below zero of each channel, as often as a step takes weights of it; none of one bit."""
        if self.spec.bits == 1:
            return ()
        rows = weight.reshape(self.spec.channels, -1)
        ends = [np.repeat(self._padded(end.astype(np.int8)), self.dot.depth) for end in (rows.max(1), -rows.min(1))]
        return (np.stack([np.maximum(end, 0) for end in ends]),)

    # ---- Code -------------------------------------------------------------------------------------------------------

    def function(self) -> object:
        spec = self.spec
        blocks, channels = spec.groups * self.blocks, spec.groups * self.blocks * self.block
        named = constants.arguments(self.outer, (blocks, self.chunks, self.vector), "uint8", channels)
        arguments: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, buffer in named.items():
            arguments[name] = buffer
            if name == "weight" and spec.bits == 2:
                arguments["ends"] = ((2, channels * self.dot.depth), "int8")
        return emit.function(arguments, lambda *flats: self._body(dict(zip(arguments, flats, strict=True))))

    def _body(self, flat: dict[str, Flat]) -> None:
        x = self.staging.emit(flat["x"], self.machine)
        n, rows, columns, _ = self.spec.result_shape
        down, across = -(-rows // self.tile.rows), -(-columns // self.tile.columns)
        blocks, pixels = self.spec.groups * self.blocks, n * down * across
        weights = emit.workspace(self.chunks * self.planes * self.vector, self.dot.weight)
        with emit.serial(blocks) as block:
            self._expand(flat, weights, block)
            with emit.tasks(pixels, self.spec.macs // blocks, self.machine) as pixel:
                image, row, column = pixel // (down * across), pixel // across % down, pixel % across
                row = emit.minimum(row * self.tile.rows, rows - self.tile.rows)
                column = emit.minimum(column * self.tile.columns, columns - self.tile.columns)
                sums = self._sums({**flat, "weight": weights}, x, image, row, column, block, None)
                self._stores(flat, sums, (image * rows + row) * columns + column, block)

    def _first_weight(self, block: Expr) -> Expr:
        return 0

    def _expand(self, flat: dict[str, Flat], weights: Flat, block: Expr) -> None:
        bits, lanes = self.spec.bits, self.vector

        def number(value: int) -> Expr:
            return emit.constant(value, "uint8", lanes)

        with emit.serial(self.chunks) as chunk:
            stored = emit.let(flat["weight"].load((block * self.chunks + chunk) * lanes, lanes))
            for plane in range(self.planes):
                moved = stored >> number(bits * plane) if plane else stored
                first = emit.bits(moved & number(1), f"int8x{lanes}")
                vector = chunk * self.planes + plane
                if bits == 1:
                    value = emit.constant(1, "int8", lanes) - first - first
                else:
                    second = emit.bits((moved >> number(1)) & number(1), f"int8x{lanes}")
                    value = self._between(flat["ends"], first, second, block, vector % self.tile.vectors)
                weights.store(emit.cast(value, self.dot.weight, lanes), vector * lanes, lanes)

    def _between(self, ends: Flat, above: Expr, below: Expr, block: Expr, vector: Expr) -> Expr:
        """`above`, `below`: bits in bytes; zero less a bit is a mask."""
        lanes, zero = self.vector, emit.constant(0, "int8", self.vector)
        at = block * (self.block * self.dot.depth) + vector * lanes
        whole = self.spec.groups * self.blocks * self.block * self.dot.depth
        return ((zero - above) & ends.load(at, lanes)) - ((zero - below) & ends.load(whole + at, lanes))

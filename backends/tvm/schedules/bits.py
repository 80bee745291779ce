"""Convolutions and linear layers whose data and weights are signs: exclusive or, and counting bits.

With a bit for each sign (1: negative) and K products in a sum,

    sum x w = K - 2 popcount(x ^ w)

Data come as codes, one byte to each, and are packed in front of the sums, 32 channels to a word, padding included: a sign has no
zero, so padding holds +1, and what it adds to sums is taken off again. Which taps of a window lie in padding depends on the row
and column of the result alone. Near the edges there are a few kinds of each, and

    base[kind of row, kind of column, o] = bias[o] + K - sum of w[o] over the taps that lie in padding

is a constant, and a result is base - 2 popcount. Weights lie in words as they are read, one bit each.

    words     counts in the lanes of sums: vpopcntd (AVX512-VPOPCNTDQ); without vectors, in a register
    bytes     counts in bytes, which 31 words cannot overflow, then added up: cnt (ARM), vpopcntb, pshufb as LLVM writes it

Paper:  Rastegari et al. 2016, "XNOR-Net", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import constants, direct, emit, tiles
from graphopt.backends.tvm.schedules.dots import Dot
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel, Registers
from graphopt.backends.tvm.schedules.packing import WORD, PackedRows
from graphopt.backends.tvm.schedules.specs import Conv, windows
from graphopt.backends.tvm.schedules.tiles import Tile

WORDS_TO_A_BYTE = 31  # of 8 bits in each byte, whose sum it holds


def conv(spec: Conv, machine: Machine, tile: Tile | None = None) -> Kernel:
    """A layer of signs; see `applies`."""
    plan = BitPlan(spec, machine, tile)
    return Kernel(plan.function(), spec.result_shape, spec.result_dtype, plan.pack, constants.arrange(spec))


def candidates(spec: Conv, machine: Machine) -> list[Tile]:
    return BitPlan(spec, machine).candidates


def applies(spec: Conv) -> bool:
    """Signs in all channels at once, in numbers that words are made of: codes -1 and 1, or 0 and 2 around 1."""
    around = {"int8": 0, "uint8": 1}.get(spec.data)
    return spec.bits == 1 and spec.signs and spec.groups == 1 and spec.zero_point == around and spec.shape[3] % 4 == 0


@dataclass(frozen=True)
class Kinds:
    """Results along one dimension by the taps of their windows that lie in padding.

    Attributes:
        results: of the dimension. before, after: those whose windows begin, or end, in padding; each is a kind, the rest one.
    """

    results: int
    before: int
    after: int

    @classmethod
    def of(cls, spec: Conv, dim: int) -> Kinds:
        results, inside = windows(spec)[dim], spec.shape[1 + dim]
        reach = spec.dilation[dim] * (spec.kernel[dim] - 1)
        starts = [r * spec.stride[dim] - spec.padding[dim][0] for r in range(results)]
        before = sum(start < 0 for start in starts)
        after = sum(start + reach >= inside for start in starts[before:])
        return cls(results, before, after)

    @property
    def count(self) -> int:
        return self.before + self.after + 1

    def representatives(self) -> list[int]:
        """A result of each kind."""
        inner = min(self.before, self.results - 1)
        return [*range(self.before), inner, *range(self.results - self.after, self.results)]

    def kind(self, result: Expr) -> Expr:
        last = emit.maximum(result - (self.results - self.after) + 1, 0) if self.after else 0
        first = emit.minimum(result, self.before) if self.before else 0
        return first + last


@dataclass(frozen=True)
class BitPlan(direct.DirectPlan):
    """How one layer is computed: pixels, blocks of channels and stores are those of `direct`."""

    @cached_property
    def words(self) -> int:
        """To a pixel."""
        return -(-self.spec.shape[3] // WORD)

    @cached_property
    def dot(self) -> Dot:
        return Dot("none", 1, "int32", "int32", "int32", self.machine.lanes("float32"))

    @cached_property
    def rows_of_bits(self) -> PackedRows:
        return PackedRows(self.spec, self.machine)

    @property
    def runs(self) -> tuple[int, int]:
        kw = self.spec.kernel[1]
        return (1, kw * self.words) if self.spec.dilation[1] == 1 else (kw, self.words)

    @property
    def candidates(self) -> list[Tile]:
        _, rows, columns, _ = self.spec.result_shape
        vectors = -(-self.spec.channels // self.dot.lanes)
        weights = self.spec.kernel[0] * self.runs[0] * self.runs[1] * 4 * self.dot.lanes
        return tiles.for_sums(rows, columns, vectors, weights, self.machine, 2 if self.in_words else 6)

    @property
    def in_words(self) -> bool:
        return self.machine.counts == "words"

    @cached_property
    def kinds(self) -> tuple[Kinds, Kinds]:
        """Of rows and of columns."""
        return Kinds.of(self.spec, 0), Kinds.of(self.spec, 1)

    # ---- Constants --------------------------------------------------------------------------------------------------

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        spec = self.spec
        constants.check(spec, weight, bias, multiplier)
        if not bool((np.abs(weight) == 1).all()):
            raise ValueError("a layer of signs takes weights of -1 and 1")
        own, *scales = constants.vectors(spec, weight, bias, multiplier, spec.zero_point)
        bits = np.pad(
            weight.transpose(0, 2, 3, 1) < 0, ((0, 0), (0, 0), (0, 0), (0, self.words * WORD - spec.shape[3]))
        )
        words = np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little")).view("<i4")  # [O, kh, kw, words]
        missing = self.blocks * self.block - spec.channels
        words = np.pad(words.reshape(spec.channels, spec.kernel[0], *self.runs), ((0, missing), (0, 0), (0, 0), (0, 0)))
        split = words.reshape(self.blocks, self.block, spec.kernel[0], *self.runs)
        packed = np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1))[..., None]
        return packed, self._base(weight, own), *(self._padded(scale) for scale in scales)

    def _base(self, weight: Array, bias: Array) -> Array:
        """See the head of this file: [kinds of rows * kinds of columns * channels]."""
        spec = self.spec
        signs = weight.astype(np.int64).sum(1)  # [O, kh, kw]
        outside = [
            [self._outside(dim, result) for result in kinds.representatives()] for dim, kinds in enumerate(self.kinds)
        ]
        full = bias + np.prod(spec.weight_shape[1:])
        rows = []
        for down, across in product(*outside):
            padded = down[:, None] | across[None, :]
            rows.append(self._padded((full - (signs * padded).sum((1, 2))).astype(np.int32)))
        return np.concatenate(rows)

    def _outside(self, dim: int, result: int) -> Array:
        """Which taps of a result's window lie in padding, along a dimension."""
        spec = self.spec
        at = result * spec.stride[dim] - spec.padding[dim][0] + np.arange(spec.kernel[dim]) * spec.dilation[dim]
        return (at < 0) | (at >= spec.shape[1 + dim])

    # ---- Code -------------------------------------------------------------------------------------------------------

    def function(self) -> object:
        spec, channels = self.spec, self.blocks * self.block
        packed = (self.blocks, spec.kernel[0], *self.runs, self.block, 1)
        arguments = constants.arguments(self.outer, packed, "int32", channels)
        rows, columns = self.kinds
        arguments["bias"] = ((rows.count * columns.count * channels,), "int32")
        return emit.function(arguments, lambda *flats: self._body(dict(zip(arguments, flats, strict=True))))

    def _body(self, flat: dict[str, Flat]) -> None:
        x = self.rows_of_bits.emit(flat["x"])
        n, rows, columns, _ = self.spec.result_shape
        down, across = -(-rows // self.tile.rows), -(-columns // self.tile.columns)
        with emit.tasks(self.blocks * n * down * across, self.spec.macs // 16, self.machine) as task:
            block, pixel = task // (n * down * across), task % (n * down * across)
            image = pixel // (down * across)
            row = emit.let(emit.minimum(pixel // across % down * self.tile.rows, rows - self.tile.rows))
            column = emit.let(emit.minimum(pixel % across * self.tile.columns, columns - self.tile.columns))
            counts = self._counts(flat, x, image, row, column, block)
            self._subtract(flat, counts, row, column, block)
            self._stores(flat, counts, (image * rows + row) * columns + column, block)

    def _counts(self, flat: dict[str, Flat], x: Flat, image: Expr, row: Expr, column: Expr, block: Expr) -> Registers:
        """Bits that differ, of each pixel and channel of a tile."""
        spec, lanes, tile, steps = self.spec, self.dot.lanes, self.tile, self.steps
        places = list(product(range(len(tile.pixels)), range(tile.vectors)))
        sums = Registers.of(len(places), "int32", lanes)
        for i in range(len(places)):
            sums.set(i, emit.constant(0, "int32", lanes))
        width = self.rows_of_bits.columns * self.words
        origin = (image * self.rows_of_bits.rows + row * spec.stride[0]) * width + column * (
            spec.stride[1] * self.words
        )
        with emit.serial(spec.kernel[0]) as ry, emit.serial(self.runs[0]) as rx:
            here = origin + ry * (spec.dilation[0] * width) + rx * (spec.dilation[1] * self.words)
            weights = block * self._block_weights + (ry * self.runs[0] + rx) * (steps * self.block)
            pixels = [here + (i * spec.stride[0] * width + j * spec.stride[1] * self.words) for i, j in tile.pixels]
            for start in range(0, steps, steps if self.in_words else WORDS_TO_A_BYTE):
                count = steps if self.in_words else min(WORDS_TO_A_BYTE, steps - start)
                self._some(flat["weight"], x, sums, weights, pixels, start, count)
        return sums

    def _some(
        self, weight: Flat, x: Flat, sums: Registers, weights: Expr, pixels: list[Expr], start: int, count: int
    ) -> None:
        """Add what `count` words from `start` on differ by."""
        lanes, vectors = self.dot.lanes, self.tile.vectors
        narrow = sums if self.in_words else Registers.of(len(pixels) * vectors, "int8", 4 * lanes)
        if not self.in_words:
            for i in range(len(pixels) * vectors):
                narrow.set(i, emit.constant(0, "int8", 4 * lanes))
        with emit.serial(count) as step:
            k = step + start
            columns = [
                emit.let(weight.load(weights + k * self.block + v * lanes, lanes)) for v in range(vectors)
            ]  # fmt: skip
            for p, pixel in enumerate(pixels):
                word = emit.let(emit.splat(x.load(pixel + k), lanes))
                for v in range(vectors):
                    differing = word ^ columns[v]
                    if not self.in_words:
                        differing = emit.bits(differing, f"int8x{4 * lanes}")
                    dtype = emit.vector(narrow.flat.dtype, narrow.lanes)
                    one = emit.intrinsic(dtype, "llvm.ctpop", differing)
                    narrow.set(p * vectors + v, narrow.get(p * vectors + v) + one)
        if not self.in_words:
            for i in range(len(pixels) * vectors):
                sums.set(i, sums.get(i) + _added_up(emit.bits(narrow.get(i), emit.vector("int32", lanes)), lanes))

    def _subtract(self, flat: dict[str, Flat], sums: Registers, row: Expr, column: Expr, block: Expr) -> None:
        """base - 2 counts."""
        lanes, (rows, columns) = self.dot.lanes, self.kinds
        for p, (i, j) in enumerate(self.tile.pixels):
            kind = rows.kind(row + i) * columns.count + columns.kind(column + j)
            start = emit.let(kind * (self.blocks * self.block) + block * self.block)
            for v in range(self.tile.vectors):
                at = p * self.tile.vectors + v
                twice = sums.get(at) << emit.constant(1, "int32", lanes)
                sums.set(at, flat["bias"].load(start + v * lanes, lanes) - twice)


def _added_up(words: Expr, lanes: int) -> Expr:
    """The sum of the four bytes, up to 255 each, of every 32-bit word."""
    words = emit.let(words)

    def number(value: int) -> Expr:
        return emit.constant(value, "int32", lanes)

    pairs = emit.let((words & number(0x00FF00FF)) + ((words >> number(8)) & number(0x00FF00FF)))
    return (pairs & number(0xFFFF)) + ((pairs >> number(16)) & number(0xFFFF))

"""Convolutions and linear layers of codes for Cortex-M with DSP instructions: `smlad` adds two 16-bit products to a sum.

    y[p, o] = sum over ky, kx of sum over k of x[row(p) + ky, column(p) + kx, k] w[o, ky, kx, k]

The data's rows are widened to 16 bits band by band (`bands.py`), so that a 32-bit load gives two elements. Weights stay bytes in
flash: four of them are a word (w0, w2, w1, w3), from which `sxtb16` makes (w0, w1) and (w2, w3). With 2 pixels x 2 channels, 16
products take 6 loads, 4 `sxtb16` and 8 `smlad`, in 14 registers with hardly a spill. Weights lie as words [channel pair, ky, kx,
k / 4, channel of the pair] and are loaded a step ahead, those of the last step from two words of zeros behind all others. Tiles
do not overlap, so that a result may be written over the residual that it adds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from graphopt.backends.tvm.machine import Machine, Processor
from graphopt.backends.tvm.schedules import constants, dots, emit, rounding
from graphopt.backends.tvm.schedules.bands import Band
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel, Registers
from graphopt.backends.tvm.schedules.lookup import Rows
from graphopt.backends.tvm.schedules.specs import Conv

TILE = 2  # pixels, and channels
WORD = 4  # weights


def applies(spec: Conv, machine: Processor) -> bool:
    return machine.dot == "smlad" and spec.integer and spec.bits == 8


def conv(spec: Conv, machine: Machine) -> Kernel:
    """Where `applies`."""
    plan = PairsPlan(spec, machine)
    return Kernel(plan.function(), spec.result_shape, spec.result_dtype, plan.pack, constants.arrange(spec))


def as_column(spec: Conv) -> Conv:
    """A 1x1 convolution with its pixels in one column, so that bands of it may be small."""
    n, h, w, c = spec.shape
    plain = spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding == ((0, 0), (0, 0))
    return replace(spec, shape=(1, n * h * w, 1, c)) if plain else spec


@dataclass(frozen=True)
class PairsPlan:
    """How one layer is computed. `outer` is its spec as given."""

    outer: Conv
    machine: Machine

    @cached_property
    def spec(self) -> Conv:
        """As computed."""
        return as_column(self.outer)

    @cached_property
    def band(self) -> Band:
        return Band(self.spec)

    @cached_property
    def runs(self) -> tuple[int, int]:
        """(kx, k): the sum's inner loops; elements of a row are one run where they are neighbours."""
        kw, c = self.spec.kernel[1], self.spec.shape[3] // self.spec.groups
        return (1, kw * c) if self.spec.groups == 1 and self.spec.dilation[1] == 1 else (kw, c)

    @property
    def words(self) -> int:
        """Of weights in one run."""
        return -(-self.runs[1] // WORD)

    @property
    def channel_words(self) -> int:
        """Of weights in one channel."""
        return self.spec.kernel[0] * self.runs[0] * self.words

    @property
    def group_channels(self) -> int:
        """Of the result."""
        return self.spec.channels // self.spec.groups

    @property
    def in_place(self) -> bool:
        """Whether the result may be written over the residual."""
        epilogue = self.spec.epilogue
        return epilogue.residual is not None and np.dtype(epilogue.residual) == np.dtype(self.spec.result_dtype)

    # ---- Constants --------------------------------------------------------------------------------------------------

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        spec, (kx, k) = self.spec, self.runs
        constants.check(spec, weight, bias, multiplier)
        rows = weight.transpose(0, 2, 3, 1).reshape(spec.channels, spec.kernel[0], kx, k)
        rows = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, -k % WORD)))
        quads = rows.reshape(spec.groups, self.group_channels, self.channel_words, WORD)[..., [0, 2, 1, 3]]
        whole = self.group_channels // TILE * TILE
        paired = quads[:, :whole].reshape(spec.groups, -1, TILE, self.channel_words, WORD).swapaxes(2, 3)
        parts = (part.reshape(spec.groups, -1) for part in (paired, quads[:, whole:]))
        packed = np.concatenate(list(parts), axis=1).astype(np.int8).reshape(-1).view(np.int32)
        return np.pad(packed, (0, TILE)), *constants.vectors(spec, weight, bias, multiplier)

    # ---- Code -------------------------------------------------------------------------------------------------------

    def function(self) -> object:
        spec = self.spec
        packed = (spec.channels * self.channel_words + TILE,)
        arguments = constants.arguments(self.outer, packed, "int32", spec.channels)
        over = list(arguments).index("residual") if self.in_place else None
        return emit.function(arguments, lambda *flats: self._body(dict(zip(arguments, flats, strict=True))), over)

    def _body(self, flat: dict[str, Flat]) -> None:
        spec, band = self.spec, self.band
        n, rows, columns, _ = spec.result_shape
        x = band.allocated()
        with emit.serial(n) as image, emit.serial(rows // band.results) as step:
            first = step * band.results
            band.fill(x, flat["x"], image, first)
            pixel = (image * rows + first) * columns  # the band's first of the result
            with emit.serial(spec.groups) as group:

                def channels(block: Expr, count: int) -> None:
                    channel = group * self.group_channels + block
                    finish = self._epilogue(flat, channel, count)
                    source = group * (spec.shape[3] // spec.groups)

                    def tile(index: Expr, start: Expr, step: int, pixels: int) -> None:
                        """Pixels of the result from `index` on; their data begins at `start`, `step` elements apart."""
                        sums = self._sums(flat, x, source + start, step, pixels, channel, count)
                        finish(sums, pixel + index, pixels)

                    self._pixels(tile)

                emit.in_vectors(self.group_channels, TILE, channels)

    def _pixels(self, tile: emit.Body) -> None:
        """All of a band's, along rows, or down a single column."""
        (down, across), columns = self.spec.stride, self.spec.result_shape[2]
        below, beside = down * self.band.width, across * self.spec.shape[3]
        if columns == 1:
            emit.in_vectors(self.band.results, TILE, lambda i, count: tile(i, i * below, below, count))
            return
        with emit.serial(self.band.results) as row:
            emit.in_vectors(
                columns,
                TILE,
                lambda i, count: tile(row * columns + i, row * below + i * beside, beside, count),
            )

    def _sums(
        self, flat: dict[str, Flat], x: Flat, start: Expr, step: int, pixels: int, channel: Expr, channels: int
    ) -> Registers:
        """[pixels, channels] of a tile."""
        spec, (kx, _) = self.spec, self.runs
        sums = Registers.of(pixels * channels, "int32", 1)
        for p, o in product(range(pixels), range(channels)):
            sums.set(p * channels + o, flat["bias"].load(channel + o))
        next_words = Registers.of(channels, "int32", 1)  # loaded a step ahead, so that no step waits for its weights
        first = channel * self.channel_words
        for o in range(channels):
            next_words.set(o, flat["weight"].load(first + o))
        with emit.serial(spec.kernel[0]) as ry, emit.serial(kx) as rx, emit.serial(self.words) as k:
            at = start + ry * (spec.dilation[0] * self.band.width) + rx * (spec.dilation[1] * spec.shape[3]) + k * WORD
            after = first + ((ry * kx + rx) * self.words + k + 1) * channels
            words = [emit.let(next_words.get(o)) for o in range(channels)]
            halves = list(product(range(2), range(pixels)))
            pairs = [emit.let(emit.bits(x.load(at + p * step + 2 * half, 2), "int32")) for half, p in halves]
            for o in range(channels):
                next_words.set(o, flat["weight"].load(after + o))
            weights = [tuple(map(emit.let, dots.halves(word))) for word in words]
            for (half, p), pair in zip(halves, pairs, strict=True):
                for o in range(channels):
                    one = p * channels + o
                    sums.set(one, dots.smlad(sums.get(one), pair, weights[o][half]))
        return sums

    def _epilogue(self, flat: dict[str, Flat], channel: Expr, channels: int) -> emit.Body:
        """(sums, first pixel, pixels): finishes and writes them."""
        spec, count = self.spec, range(channels)
        scales = [emit.let(flat["multiplier"].load(channel + o)) for o in count]
        slopes = [rounding.slopes(flat, channel + o, 1) for o in count] if spec.epilogue.slopes else None
        table = Rows(flat["table"], self.machine).of if "table" in flat else None

        def finish(sums: Registers, pixel: Expr, pixels: int) -> None:
            places = [(pixel + p) * spec.channels + channel + o for p, o in product(range(pixels), count)]
            values = [emit.cast(sums.get(i), "float32") * scales[i % channels] for i in range(len(places))]
            residuals = [flat["residual"].load(place) for place in places] if "residual" in flat else None
            sloped = [slopes[i % channels] for i in range(len(places))] if slopes else None
            results = rounding.finish(
                values, residuals, spec.epilogue, spec.result_dtype, 1, self.machine, table, sloped
            )
            for place, result in zip(places, results, strict=True):
                flat["y"].store(result, place)

        return finish

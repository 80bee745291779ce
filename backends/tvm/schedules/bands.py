"""A band of a layer's data: the rows that a few rows of the result read, padded and widened to 16 bits.

A copy of the whole data would take more memory than microcontrollers have. A band is filled, all channels of its rows of the
result are computed from it, and the next is filled in its place; rows that two bands share are widened twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.specs import Conv

LARGEST = 10 << 10  # bytes: a small part of a microcontroller's memory, and few enough rows are widened twice
SLACK = 4  # elements readable behind the last one
TOGETHER = 4  # elements widened at once


@dataclass(frozen=True)
class Band:
    """Rows of a layer's data in memory, [rows, columns, channels] of int16."""

    spec: Conv

    @cached_property
    def results(self) -> int:
        """Rows of the result that one band serves: as many as fit `LARGEST`, a divisor of all: no band overlaps another."""
        rows = self.spec.result_shape[1]
        fitting = [n for n in range(1, rows + 1) if rows % n == 0 and 2 * self._height(n) * self.width <= LARGEST]
        return max(fitting, default=1)

    @property
    def width(self) -> int:
        """Elements of a row, padding included."""
        spec = self.spec
        return ((spec.result_shape[2] - 1) * spec.stride[1] + self._reach(1)) * spec.shape[3]

    @property
    def _rows(self) -> int:
        return self._height(self.results)

    def _height(self, results: int) -> int:
        """Rows that this many rows of the result read."""
        return (results - 1) * self.spec.stride[0] + self._reach(0)

    def _reach(self, axis: int) -> int:
        return self.spec.dilation[axis] * (self.spec.kernel[axis] - 1) + 1

    def allocated(self) -> Flat:
        return emit.workspace(self._rows * self.width + SLACK, "int16")

    def fill(self, band: Flat, x: Flat, image: Expr, first: Expr) -> None:
        """Widen what the rows of the result from `first` on read; padding holds the zero point."""
        spec = self.spec
        _, h, w, c = spec.shape
        (top, _), (left, _) = spec.padding
        copied = min(w * c, self.width - left * c)

        def blank(start: Expr, count: int) -> None:
            if count > 0:
                with emit.serial(count) as i:
                    band.store(emit.constant(spec.zero_point, "int16"), start + i)

        with emit.serial(self._rows) as i:
            start, row = i * self.width, first * spec.stride[0] + i - top
            with emit.choice((row >= 0) & (row < h)) as (then, otherwise):
                with then:
                    blank(start, left * c)
                    source, target = (image * h + row) * (w * c), start + left * c

                    def widen(k: Expr, count: int) -> None:
                        band.store(emit.cast(x.load(source + k, count), "int16", count), target + k, count)

                    emit.in_vectors(copied, TOGETHER, widen)
                    blank(target + copied, self.width - left * c - copied)
                with otherwise:
                    blank(start, self.width)

"""Data as a kernel wants to read it: padded, and of the type its multiplications take.

The copy is made only where something has to change: padding, another type, or a last step that reads beyond the data's end.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import emit
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.specs import Conv, Pool, windows

SLACK = 64  # elements readable behind the last one


@dataclass(frozen=True)
class Staging:
    """A padded copy of a spec's data.

    Attributes:
        dtype: of the copy; 8-bit codes of the other sign are moved by 128.
        needed: False where the data can be read as it is.
        rows, columns: of what is read, padding included.
        fill: what padding holds, a value of the data's type.
    """

    spec: Conv | Pool
    dtype: str
    needed: bool
    rows: int
    columns: int
    fill: float

    @classmethod
    def of(cls, spec: Conv | Pool, dtype: str, fill: float = 0, *, overreaches: bool = False) -> Staging:
        """For a kernel that reads `dtype`, and perhaps a few elements behind a pixel's last."""
        padded = any(p for pair in spec.padding for p in pair)
        if not (padded or dtype != spec.data or overreaches):
            return cls(spec, dtype, False, *spec.shape[1:3], fill)
        rows, columns = (
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(windows(spec), spec.stride, spec.dilation, spec.kernel, strict=True)
        )
        return cls(spec, dtype, True, rows, columns, fill)

    @property
    def shift(self) -> int:
        """What the copy's codes are less than the data's."""
        return {("uint8", "int8"): 128, ("int8", "uint8"): -128}.get((self.spec.data, self.dtype), 0)

    def emit(self, x: Flat, machine: Machine) -> Flat:
        """Copy, one task a row."""
        if not self.needed:
            return x
        lanes = machine.vector_bytes
        n, h, w, c = self.spec.shape
        (top, _), (left, _) = self.spec.padding
        copied = min(w, self.columns - left)
        width = self.columns * c
        total = n * self.rows * width
        staged = emit.workspace(total + SLACK, self.dtype)
        fill = self.fill - self.shift

        def blank(start: Expr, count: int) -> None:
            def one(i: Expr, width: int) -> None:
                staged.store(emit.constant(fill, self.dtype, width), start + i, width)

            emit.in_vectors(count, lanes, one)

        with emit.tasks(n * self.rows, total, machine) as task:
            image, row = task // self.rows, task % self.rows - top
            start = task * width
            with emit.choice((row >= 0) & (row < h)) as (then, otherwise):
                with then:
                    blank(start, left * c)
                    source = (image * h + row) * w * c

                    def copy(i: Expr, count: int) -> None:
                        staged.store(self.converted(x.load(source + i, count), count), start + left * c + i, count)

                    emit.in_vectors(copied * c, lanes, copy)
                    blank(start + (left + copied) * c, (self.columns - left - copied) * c)
                with otherwise:
                    blank(start, width)
        return staged

    def converted(self, value: Expr, lanes: int) -> Expr:
        """Data as the copy holds it."""
        if self.shift:
            flipped = emit.bits(value, emit.vector("uint8", lanes)) ^ emit.constant(128, "uint8", lanes)
            return emit.bits(flipped, emit.vector(self.dtype, lanes))
        return emit.cast(value, self.dtype, lanes)

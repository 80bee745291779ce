"""Softmax of codes, which stands beside the scheduled kernels.

    e = table[255 - (largest - x)];  q = sat(rne(e * floor(1 / s_y) / sum e) + z_y)

as `graphopt.lowering.integers.kernels` computes it. The largest e is nearly the largest float32 by the number of elements, so its
product with the steps is one beyond float32 where they are many or the elements few: e and their sum are divided by 2^40, more
than there are steps to a grid, which no share changes by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.backends.tvm.grids import dtype_of
from graphopt.backends.tvm.schedules import exact
from graphopt.lowering.qdq import QuantizationParameters

DOWN = 2.0**-40


def softmax(rows: tuple[int, int], x: QuantizationParameters, y: QuantizationParameters) -> Any:
    """(codes [rows, length], exponentials [256]) -> codes."""
    length = rows[1]
    codes = te.placeholder(rows, dtype_of(x), "x")
    table = te.placeholder((256,), "float32", "table")
    lowest = int(np.iinfo(dtype_of(x)).min)
    j, k = te.reduce_axis((0, length), "j"), te.reduce_axis((0, length), "k")
    largest = te.compute(rows[:1], lambda i: te.max(codes[i, j].astype("int32"), axis=[j]), "largest")
    e = te.compute(rows, lambda i, c: table[codes[i, c].astype("int32") - lowest + (255 - (largest[i] - lowest))], "e")
    total = te.compute(rows[:1], lambda i: te.sum(e[i, k], axis=[k]), "total")
    inverse = float(np.floor(np.float32(1) / np.float32(y.scale)))

    def share(i: Any, c: Any) -> Any:
        down = exact.number(DOWN, "float32")
        steps = _nearest_quotient(e[i, c] * down, exact.number(inverse, "float32"), total[i] * down)
        return _clamp(steps + tirx.const(float(y.zero_point), "float32"), y).astype(dtype_of(y))

    return te.create_prim_func([codes, table, te.compute(rows, share, "y")])


def _nearest_quotient(a: Any, b: Any, c: Any) -> Any:
    """The whole number next to a b / c, of two the even one, for positive numbers, exactly.

    The product is its rounded value and the rest of it; the quotient of the former is at most one off, which the remainder tells.
    """
    zero, half, one = (tirx.const(n, "float32") for n in (0.0, 0.5, 1.0))
    product = exact.product(a, b)
    rest = exact.fma(a, b, zero - product)
    found = exact.nearest(exact.quotient(product, c))
    remainder = exact.fma(zero - found, c, product)
    above, below = (remainder - c * half) + rest, (remainder + c * half) + rest
    odd = found - tirx.const(2.0, "float32") * tirx.floor(found * half) > half
    up = tirx.any(above > zero, tirx.all(above == zero, odd))
    down = tirx.any(below < zero, tirx.all(below == zero, odd))
    return found + tirx.Select(up, one, zero) - tirx.Select(down, one, zero)


def _clamp(value: Any, grid: QuantizationParameters) -> Any:
    low, high = (tirx.const(float(end), "float32") for end in (grid.quant_min, grid.quant_max))
    return tirx.max(tirx.min(value, high), low)

"""Grids of values as kernels want to know them."""

from __future__ import annotations

from graphopt.backends.tvm.schedules import Codes
from graphopt.lowering.qdq import Grid


def codes_of(grid: Grid) -> Codes:
    return Codes(dtype_of(grid), grid.zero_point, grid.quant_min, grid.quant_max)


def dtype_of(grid: Grid) -> str:
    return str(grid.dtype).removeprefix("torch.")

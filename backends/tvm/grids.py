"""Grids of values as kernels want to know them."""

from __future__ import annotations

from graphopt.backends.tvm.schedules import Codes
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.utils.printing import dtype_name


def codes_of(grid: QuantizationParameters) -> Codes:
    return Codes(dtype_of(grid), grid.zero_point, grid.quant_min, grid.quant_max)


def dtype_of(grid: QuantizationParameters) -> str:
    return dtype_name(grid.dtype)

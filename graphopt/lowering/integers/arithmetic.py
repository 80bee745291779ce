"""Float and integer arithmetic to the last bit, as ONNX Runtime's kernels do it.

    saturate(v)      clamp(v + zero_point)                 v whole numbers
    requantize(acc)  clamp(rne(f32(acc) * multiplier) + zero_point)          MlasRequantizeOutput, mlas/lib/quantize.cpp
    quantize(x)      clamp(rne(x / scale) + zero_point)                      MlasQuantizeLinear, the same file
    dequantize(q)    f32(q - zero_point) * scale                             MlasDequantizeLinear

rne rounds halves to even. A function of one 8-bit operand is a table of 256 entries, of two a table of 65,536: whatever a
kernel does with a pair of codes is computed once for each pair, with no regard to speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from graphopt import formats
from graphopt.lowering.qdq import QuantizationParameters

EXACT = 2**24  # float32 holds every whole number up to here


def f32(value: float) -> Tensor:
    """A float32 scalar, so that arithmetic with it rounds as the kernels' does."""
    return torch.tensor(value, dtype=torch.float32)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of float32 tensors, rounded once.

    In float64 the product is exact and the sum nearly so. It is rounded to odd there (Boldo and Melquiond 2008), after which
    rounding to float32 gives what a single rounding gives.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)  # Knuth's two-sum
    even = total.view(torch.int64) % 2 == 0
    towards = torch.copysign(torch.tensor(torch.inf, dtype=torch.float64), lost)
    return torch.where((lost != 0) & even, torch.nextafter(total, towards), total).float()


def saturate(values: Tensor, grid: QuantizationParameters) -> Tensor:
    """Whole numbers, zero point not yet added -> codes."""
    return (values + grid.zero_point).clamp(grid.quant_min, grid.quant_max).to(grid.dtype)


def requantize(accumulator: Tensor, multiplier: Tensor, grid: QuantizationParameters) -> Tensor:
    """int32 sums -> codes; `multiplier` (float32) broadcasts over them."""
    return saturate(torch.round(accumulator.float() * multiplier), grid)


def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype) -> Tensor:
    """Float values -> codes; of what is no number the least, as maximum and minimum with the ends leave it in that order."""
    x = x.masked_fill(x.isnan(), -torch.inf)
    return formats.quantize(x, f32(scale), torch.tensor(zero_point), quant_min, quant_max).to(dtype)


def dequantize(
    q: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype, **_: object
) -> Tensor:
    """Codes -> float32 values."""
    return (q.int() - zero_point).float() * f32(scale)


def all_codes(dtype: torch.dtype) -> Tensor:
    """The 256 codes of an 8-bit type in ascending order, int32."""
    info = torch.iinfo(dtype)
    return torch.arange(info.min, info.max + 1, dtype=torch.int32)


class Table:
    """A function of one code, or of two, looked up.

    Args:
        function: from int32 codes [256] (or [256, 1] and [1, 256]) to the codes of the result.
        grids: of the operands.
    """

    def __init__(self, function: Callable[..., Tensor], *grids: QuantizationParameters) -> None:
        codes = [all_codes(grid.dtype) for grid in grids]
        self.lowest = [int(c[0]) for c in codes]
        operands = codes if len(codes) == 1 else [codes[0][:, None], codes[1][None, :]]
        self.entries = function(*operands).flatten().contiguous()

    def __call__(self, *operands: Tensor) -> Tensor:
        """Operands broadcast against each other."""
        index = operands[0].int() - self.lowest[0]
        for operand, lowest in zip(operands[1:], self.lowest[1:], strict=True):
            index = index * 256 + (operand.int() - lowest)
        return self.entries.index_select(0, index.flatten()).reshape(index.shape)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep torch from computing float32 products in less, or by transforms (Winograd), that do not keep whole numbers."""
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.backends.nnpack.flags(enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)

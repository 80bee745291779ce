"""XNNPACK's kernels of signed bytes, which compute alike on every CPU.

Layers requantize as ONNX Runtime's do (`LayerKernel`). With a, b, x codes, s scales, z zero points, products and quotients of
scales rounded to float32, rne to the nearest, halves to even:

    quantize     q = rne(x * (1 / s_y)) + z_y: a product, where ONNX Runtime divides                  qs8 vcvt
    add, sub     fixed point: multipliers m = rne(s / s_y 2^shift) of 21 bits; halves are rounded up
                 q = ((a - z_a) m_a +- (b - z_b) m_b + 2^(shift - 1)) >> shift + z_y                  qs8 vadd
    multiply     q = rne(f32((a - z_a)(b - z_b)) * (s_a s_b / s_y)) + z_y                             qs8 vmul
    mean         q = rne(f32(sum (x - z_x)) * (s_x / (s_y pixels)) + z_y): the zero point comes
                 before rounding                                                                      qs8 rsum

Concatenations, maxima of windows and moves hand codes on as they are. All were compared, code by code, with the library inside of
ExecuTorch 1.5.1 (`tests/backends/test_executorch_kernels.py`).
"""

from __future__ import annotations

import math
from math import prod

import torch
from torch import Tensor

from graphopt.lowering.integers.arithmetic import Table, f32, saturate
from graphopt.lowering.qdq import QuantizationParameters

MULTIPLIER_BITS = 20  # behind the first one
# What the library refuses: steps that are less, or not less, than so many steps of the result.
LEAST_RATIO, MOST_RATIO = 2.0**-10, 2.0**8  # s / s_y of additions; of products and layers s_x s_w / s_y
LEAST_PRODUCT = 2.0**-16


def quantize(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype) -> Tensor:
    """Float values -> codes; of what is no number the least."""
    steps = x.masked_fill(x.isnan(), -torch.inf) * (1 / f32(scale))
    return (torch.round(steps.clamp(-1024, 1024)) + zero_point).clamp(quant_min, quant_max).to(dtype)


def add(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a + b."""
    return _sum(a, b, y, 1)


def subtract(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a - b."""
    return _sum(a, b, y, -1)


def _sum(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters, sign: int) -> Table:
    ratios = [f32(operand.scale) / f32(y.scale) for operand in (a, b)]
    shift = MULTIPLIER_BITS - (math.frexp(float(max(ratios)))[1] - 1)
    m_a, m_b = (int(torch.round(ratio.double() * 2.0**shift)) for ratio in ratios)

    def total(p: Tensor, q: Tensor) -> Tensor:
        acc = (p - a.zero_point).long() * m_a + sign * (q - b.zero_point).long() * m_b
        return saturate((acc + (1 << (shift - 1))) >> shift, y)

    return Table(total, a, b)


def multiply(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a * b."""
    ratio = f32(a.scale) * f32(b.scale) / f32(y.scale)

    def product(p: Tensor, q: Tensor) -> Tensor:
        return saturate(torch.round(((p - a.zero_point) * (q - b.zero_point)).float() * ratio), y)

    return Table(product, a, b)


def mean(x: Tensor, grid: QuantizationParameters, y: QuantizationParameters) -> Tensor:
    """Over every dimension behind the channels, kept with size 1."""
    pixels = prod(x.shape[2:])
    acc = x.flatten(2).sum(-1, dtype=torch.int32) - grid.zero_point * pixels
    value = acc.float() * (f32(grid.scale) / (f32(y.scale) * float(pixels))) + float(y.zero_point)
    return saturate(torch.round(value) - y.zero_point, y).reshape(*x.shape[:2], *[1] * (x.dim() - 2))

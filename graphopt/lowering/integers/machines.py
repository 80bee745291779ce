"""Where kernels differ from machine to machine: in ONNX Runtime quantized addition, and the products of layers.

    x86_64   add      float32 with fused multiply-add; with r = s / s_y and f = z_y - fma(r_a, z_a, r_b z_b)
                      q = rne(fma(a, r_a, fma(b, r_b, f)))                            qladd_avx2.cpp
    aarch64  add      fixed point: multipliers m_a, m_b of 22 bits and a shift; halves are rounded away from zero
                      q = ((a - z_a) m_a + (b - z_b) m_b) / 2^shift + z_y             qladd.cpp

    avx2     as x86_64, but without VNNI: layers add products in pairs that saturate, see `pairs.py`

All were compared with release 1.31 code by code, aarch64 on emulated CPUs (`tests/backends/test_arm.py`).

    xnnpack  another library, which has kernels of its own for other operators, too: see `xnnpack.py`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graphopt.lowering.integers import xnnpack
from graphopt.lowering.integers.arithmetic import Table, f32, fma, quantize, saturate
from graphopt.lowering.integers.kernels import global_mean, multiply
from graphopt.lowering.qdq import QuantizationParameters

Joins = Callable[[QuantizationParameters, QuantizationParameters, QuantizationParameters], Table]
ONNXRUNTIME = frozenset({"conv", "linear", "add", "mul", "sigmoid", "softmax", "average_pool", "global_average_pool"})
XNNPACK = frozenset({"conv", "linear", "add", "sub", "mul", "global_average_pool"})


class Machine(NamedTuple):
    """The kernels of one kind of CPU.

    Attributes:
        add: `add(a, b, y)` makes a table of two codes. multiply, subtract: likewise; None where there is no kernel.
        mean: `mean(x, grid, y)` of the codes of images, from one grid to another.
        quantize: from float values to codes.
        kinds: families of operators that there are integer kernels for; `concat` and what moves codes aside, which need none.
        in_pairs: layers add products in pairs of 16 bits.
        mixes_signs: layers multiply signed values by unsigned weights, too, for which ONNX Runtime has no kernel.
        float_output: linear layers may answer in float.
    """

    add: Joins
    multiply: Joins = multiply
    subtract: Joins | None = None
    mean: Callable[..., Tensor] = global_mean
    quantize: Callable[..., Tensor] = quantize
    kinds: frozenset[str] = ONNXRUNTIME
    in_pairs: bool = False
    mixes_signs: bool = False
    float_output: bool = True


def add_avx2(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a + b."""
    ratio_a, ratio_b = f32(a.scale) / f32(y.scale), f32(b.scale) / f32(y.scale)
    offset = float(y.zero_point) - fma(ratio_a, f32(a.zero_point), ratio_b * float(b.zero_point))

    def total(p: Tensor, q: Tensor) -> Tensor:
        inner = fma(q.float(), ratio_b.expand_as(q), offset.expand_as(q))
        return saturate(torch.round(fma(p.float(), ratio_a.expand_as(p), inner)) - y.zero_point, y)

    return Table(total, a, b)


def add_neon(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a + b; in float32, without fusing, where the ratios of scales leave the fixed point's range."""
    ratios = [float(f32(g.scale) / f32(y.scale)) for g in (a, b)]
    shift = 21 - (math.frexp(max(ratios))[1] - 1)
    multipliers = [round(r * 2.0**shift) for r in ratios]
    fits = all(2.0**-14 <= r < 256 for r in ratios) and 13 <= shift <= 31 and max(multipliers) < 2**22

    def fixed(p: Tensor, q: Tensor) -> Tensor:
        acc = (p - a.zero_point).long() * multipliers[0] + (q - b.zero_point).long() * multipliers[1]
        return saturate(_shift_right(acc, shift), y)

    def floating(p: Tensor, q: Tensor) -> Tensor:
        value = ((p - a.zero_point).float() * f32(a.scale) + (q - b.zero_point).float() * f32(b.scale)) / f32(y.scale)
        value = value.clamp(y.quant_min - y.zero_point, y.quant_max - y.zero_point)
        return saturate(torch.round(value + float(y.zero_point)) - y.zero_point, y)

    return Table(fixed if fits else floating, a, b)


def _shift_right(acc: Tensor, shift: int) -> Tensor:
    """acc / 2^shift, halves away from zero: one less where negative, then a shift that rounds halves up."""
    return (acc - (acc < 0).long() + (1 << (shift - 1))) >> shift


MACHINES = {
    "x86_64": Machine(add_avx2),
    "avx2": Machine(add_avx2, in_pairs=True),
    "aarch64": Machine(add_neon),
    "xnnpack": Machine(
        xnnpack.add, xnnpack.multiply, xnnpack.subtract, xnnpack.mean, xnnpack.quantize, XNNPACK, float_output=False
    ),
}

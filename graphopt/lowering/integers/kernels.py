"""The integer kernels of ONNX Runtime's CPU provider, one class each: made once per node, called on codes.

Sources are files in contrib_ops/cpu/quantization/ and core/mlas/lib/ of microsoft/onnxruntime; the results were compared with
release 1.31, on x86 and on emulated aarch64. With x, w, a, b codes, s scales, z zero points, and every product and quotient of
scales rounded to float32:

    LayerKernel     acc = sum (x - z_x)(w - z_w) + bias, exact in 32 bits;  q = rne(f32(acc) * (s_x s_w / s_y)) + z_y, saturated,
                    which is the fused activation too. Without an output grid (QGemm): y = f32(acc) * (s_x s_w). A CPU without
                    VNNI adds products in pairs that saturate before: see `graphopt.lowering.integers.pairs`
                    QLinearConv, QGemm (quant_gemm.cc), MlasRequantizeOutput
    multiply        q = rne(f32((a - z_a)(b - z_b)) * (s_a s_b / s_y) + z_y)                             qlmul.cpp
    sigmoid         a table; the logistic function is a quotient of polynomials, not exp                 logistic.cpp
    global_mean     q = rne(f32(acc) * (s_x / (s_y pixels))) + z_y                                        qlgavgpool.cpp
    AveragePool     y = sum of dequantized values, row by row in float32, / their number;
                    q = rne(y / s_y + z_y): the zero point is added before rounding                      qlinear_pool.cc
    Softmax         a table of exp, sums in float32; q = rne(e floor(1 / s_y) / sum e) + z_y             qlinear_softmax.cc

Sums differ between machines: see `graphopt.lowering.integers.machines`. Everything else that moves codes or
maps them one by one (max pooling, concatenation, leaky relu, resizing) is what dequantize, float operator and quantize give.

Not reproduced: values beyond 2^31 steps, which wrap on x86.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.lowering.integers.arithmetic import EXACT, Table, f32, fma, quantize, requantize, saturate
from graphopt.lowering.integers.pairs import Pairs
from graphopt.lowering.qdq import QuantizationParameters


class Window(NamedTuple):
    """How a layer moves over its input; empty for linear layers."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


LINEAR = Window((), (), (), 1)


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """A convolution or linear layer.

    Attributes:
        operator: the ATen call without its tensors: (x, w) -> sums.
        weight: w - z_w, [out, in / groups, *kernel], float32 where every sum is exact in it, else float64.
        bias: int32 [out], or None.
        scale: s_x s_w, float32 [] or [out]. zero_point: z_x.
        channel_dim: of the result.
        grid: of the result, None for float.
        pairs: of products that can saturate on the way, None where every sum is exact.
        window: how it moves over its input, for those that compile it.
    """

    operator: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    zero_point: int
    channel_dim: int
    grid: QuantizationParameters | None
    pairs: Pairs | None = None
    window: Window = LINEAR

    def __call__(self, x: Tensor) -> Tensor:
        sums = self.operator((x.int() - self.zero_point).to(self.weight.dtype), self.weight).int()
        if self.pairs is not None:
            sums -= self.pairs.excess(x)
        if self.bias is not None:
            sums += self.along_channels(self.bias, sums)
        if self.grid is None:
            return sums.float() * self.along_channels(self.scale, sums)
        return requantize(sums, self.along_channels(self.scale / f32(self.grid.scale), sums), self.grid)

    def along_channels(self, values: Tensor, like: Tensor) -> Tensor:
        dims = like.dim()
        return values.reshape([-1 if d == self.channel_dim else 1 for d in range(dims)]) if values.dim() else values


def centred(codes: Tensor, zero_point: Tensor, x: QuantizationParameters) -> Tensor:
    """w - z_w in the float type that holds every sum of it with codes of x."""
    shape = [-1, *[1] * (codes.dim() - 1)] if zero_point.dim() else []
    weight = codes.int() - zero_point.int().reshape(shape)
    info = torch.iinfo(x.dtype)
    reach = max(x.zero_point - info.min, info.max - x.zero_point)
    largest = reach * int(weight.abs().flatten(1).sum(1).max())
    return weight.float() if largest < EXACT else weight.double()


def multiply(a: QuantizationParameters, b: QuantizationParameters, y: QuantizationParameters) -> Table:
    """a * b. Product and sum are rounded apart."""
    ratio = f32(a.scale) * f32(b.scale) / f32(y.scale)

    def product(p: Tensor, q: Tensor) -> Tensor:
        exact = ((p - a.zero_point) * (q - b.zero_point)).float()
        return saturate(torch.round(exact * ratio + float(y.zero_point)) - y.zero_point, y)

    return Table(product, a, b)


ALPHA = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01)
BETA = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01,
    9.93151921023180e-01,
)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) as MlasLogisticKernel approximates it, float32."""
    x = x.clamp(-18, 18)
    square = x * x

    def polynomial(coefficients: tuple[float, ...]) -> Tensor:
        value = f32(coefficients[0]).expand_as(x)
        for coefficient in coefficients[1:]:
            value = fma(value, square, f32(coefficient).expand_as(x))
        return value

    return (polynomial(ALPHA) * x / polynomial(BETA) + 0.5).clamp(0, 1)


def sigmoid(x: QuantizationParameters, y: QuantizationParameters) -> Table:
    return Table(lambda q: quantize(logistic((q - x.zero_point).float() * f32(x.scale)), *y), x)


def global_mean(x: Tensor, grid: QuantizationParameters, y: QuantizationParameters) -> Tensor:
    """Over every dimension behind the channels, kept with size 1."""
    pixels = prod(x.shape[2:])
    acc = x.flatten(2).sum(-1, dtype=torch.int32) - grid.zero_point * pixels
    scale = f32(grid.scale) / (f32(y.scale) * float(pixels))
    return requantize(acc.reshape(*x.shape[:2], *[1] * (x.dim() - 2)), scale, y)


@dataclass(frozen=True, eq=False)
class AveragePool:
    """A mean over windows.

    Attributes:
        x, y: grids.
        kernel, stride, padding: one number per image dimension.
        shape_of: the ATen call on an image alone, which knows how windows at the edge count.
        include_padding: whether padding counts as elements.
    """

    x: QuantizationParameters
    y: QuantizationParameters
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    shape_of: Callable[[Tensor], Tensor]
    include_padding: bool

    def __call__(self, codes: Tensor) -> Tensor:
        if codes.dim() < len(self.kernel) + 2:  # one image without a batch
            return self(codes[None])[0]
        size = tuple(codes.shape[2:])
        if size == self.kernel and not any(self.padding):
            return global_mean(codes, self.x, self.y)
        out = tuple(self.shape_of(torch.zeros(1, 1, *size)).shape[2:])
        # as far as the last window reaches, which may be beyond the padding
        ends = [(o - 1) * s + k for o, s, k in zip(out, self.stride, self.kernel, strict=True)]
        pads = [n for p, e, n0 in zip(self.padding, ends, size, strict=True) for n in (max(e - p - n0, 0), p)][::-1]
        values = F.pad((codes.int() - self.x.zero_point).float() * f32(self.x.scale), pads)
        inside = F.pad(torch.ones(1, 1, *size), pads)
        total, count = torch.zeros(*codes.shape[:2], *out), torch.zeros(1, 1, *out)
        for offset in itertools.product(*map(range, self.kernel)):
            places = zip(offset, out, self.stride, strict=True)
            window: tuple[Any, ...] = (..., *(slice(o, o + (n - 1) * s + 1, s) for o, n, s in places))
            total += values[window]
            count += inside[window]
        mean = total / (float(prod(self.kernel)) if self.include_padding else count)
        codes_of_mean = torch.round(mean / f32(self.y.scale) + float(self.y.zero_point))
        return saturate(codes_of_mean - self.y.zero_point, self.y)


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax along `dim`. Sums run from the first element to the last in float32; shares of them are rounded once, to a step."""

    x: QuantizationParameters
    y: QuantizationParameters
    dim: int

    def __call__(self, codes: Tensor) -> Tensor:
        moved = codes.movedim(self.dim, -1).int() - torch.iinfo(self.x.dtype).min  # 0 to 255
        table = self.exponentials(moved.shape[-1])
        e = table[(moved + (255 - moved.amax(-1, keepdim=True))).long()]
        total = torch.from_numpy(np.add.accumulate(e.numpy(), axis=-1)[..., -1:])
        steps = torch.floor(1 / f32(self.y.scale)).double()
        share = torch.round(e.double() * steps / total.double()).float()  # e * steps is exact in 53 bits
        return saturate(share, self.y).movedim(-1, self.dim)

    def exponentials(self, length: int) -> Tensor:
        """exp of the distance to the largest code, scaled so that no sum overflows."""
        scale = float(f32(self.x.scale))
        shift = max(0.0, float(np.log(np.finfo(np.float32).max / np.float32(length))) - 5) / scale
        return torch.exp((torch.arange(256, dtype=torch.float64) - 255 + shift) * scale).float()

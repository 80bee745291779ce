"""Networks whose integer kernels the simulation is compared on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from blocks import conv
from rewriting import Model
from torch import Tensor, nn


def joined(m: Any, x: Tensor) -> Tensor:
    parts = [*m.a(x).chunk(2, 1), m.b(x)]
    return m.c(F.pad(F.interpolate(F.channel_shuffle(torch.cat(parts, 1), 4)[:, 1:7], scale_factor=2), (0, 1, 1, 0)))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {  # network, input, kernel, the runtime's operator
    "groups, stride, dilation": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.Hardtanh(-0.1, 0.2),
        ), (3, 9, 8), "conv", "QLinearConv",
    ),
    "sums beyond float32": (
        lambda: nn.Sequential(conv(3, 700), nn.ReLU(), nn.Conv2d(700, 4, 8)), (3, 8, 8), "conv", "QLinearConv",
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.AvgPool1d(2), nn.Conv1d(8, 4, 3)),
        (4, 16), "average_pool", "QLinearAveragePool",
    ),
    "linear on tokens": (
        lambda: nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)), (5, 16), "linear", "QGemm",
    ),
    "leaky relu": (lambda: nn.Sequential(conv(3, 4), nn.LeakyReLU(0.2), conv(4, 4)), (3, 8, 8), "quantize", "QLinearLeakyRelu"),
    "softmax over channels": (
        lambda: nn.Sequential(conv(3, 6), nn.Softmax(1), conv(6, 4)), (3, 8, 8), "softmax", "QLinearSoftmax",
    ),
    "padded windows": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1), conv(4, 4)), (3, 8, 8), "average_pool", "QLinearAveragePool",
    ),
    "windows over the edge": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False), conv(4, 4)),
        (3, 8, 9), "average_pool", "QLinearAveragePool",
    ),
    "one window": (
        lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d(8), conv(4, 4, 1)), (3, 8, 8), "average_pool", "QLinearAveragePool",
    ),
    "a sum that broadcasts its first operand": (
        lambda: Model(lambda m, x: m.c(m.b(x).mean((2, 3), keepdim=True) + m.a(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 4)),
        (3, 8, 8), "add", "QLinearAdd",
    ),
    "a product in front of a sum": (
        lambda: Model(lambda m, x: m.c(F.relu(m.a(x) * m.b(x)) + m.a(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 4)),
        (3, 8, 8), "mul", "QLinearMul",
    ),
    "moves": (lambda: Model(joined, a=conv(3, 4), b=conv(3, 4), c=conv(6, 4)), (3, 8, 8), "quantize", "Resize"),
}  # fmt: skip

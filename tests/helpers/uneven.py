"""A network whose channels have ranges far apart, so that equalization moves them."""

from __future__ import annotations

import torch
from blocks import conv
from torch import nn

from graphopt.formats import Format

PER_TENSOR = Format(8, symmetric=True)


def uneven(groups: int = 1, width: int = 8) -> nn.Module:
    first, second = conv(3, width), conv(width, width, groups=groups)
    with torch.no_grad():
        first.weight.mul_(torch.logspace(-1, 1, width).reshape(-1, 1, 1, 1))
        second.weight.mul_(torch.logspace(1, -1, width).reshape(-1, 1, 1, 1))
    return nn.Sequential(first, nn.ReLU6(), second, nn.ReLU6(), conv(width, 4, 1)).eval()

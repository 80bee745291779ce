"""A network whose channels have ranges far apart, so that equalization moves them."""

from __future__ import annotations

import torch
from blocks import conv
from torch import nn

from graphopt.formats import Format

PER_TENSOR = Format(8, symmetric=True)


def uneven(groups: int = 1, width: int = 8) -> nn.Module:
    model = nn.Sequential(
        conv(3, width), nn.ReLU6(), conv(width, width, groups=groups), nn.ReLU6(), conv(width, 4, 1)
    ).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-1, 1, width).reshape(-1, 1, 1, 1))
        model[2].weight.mul_(torch.logspace(1, -1, width).reshape(-1, 1, 1, 1))
    return model

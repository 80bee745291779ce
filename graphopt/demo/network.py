"""A small image classifier with the building blocks of large ones: residual and depthwise-separable convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm, keeping the size at stride 1."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """[N, channels, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels, 3)
        self.second = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Separable(nn.Module):
    """Depthwise, then pointwise: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class DigitNet(nn.Module):
    """Images [N, 1, 8, 8] with values 0 to 1 -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 48, 3)
        self.blocks = nn.Sequential(
            Residual(48), Separable(48, 96, stride=2), Residual(96), Separable(96, 192, stride=1)
        )
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

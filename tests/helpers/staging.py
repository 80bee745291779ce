"""Small networks for stages: a cheap one and a better one of the same task, quantized, and a network with exits."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import graphopt


class Cheap(nn.Module):
    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3, padding=1, stride=2), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return found


class Exiting(nn.Module):
    """Returns the answers of two exits and of the end."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in ((3, 4), (4, 8), (8, 8))
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in (4, 8, 8))

    def forward(self, x: Tensor) -> list[Tensor]:
        answers = []
        for conv, head in zip((self.first, self.second, self.third), self.heads, strict=True):
            x = torch.relu(conv(x))
            answers.append(head(x.mean((2, 3))))
        return answers


def images(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@cache
def optimized(width: int, target: str = "x86") -> Any:
    """A small network in int8; logits are spread, so that confidences are."""
    torch.manual_seed(width)
    model = Cheap(width).eval()
    model.head.weight.data *= 20
    return graphopt.optimize(model, images(2), target=target, calibration=images(), measure=False)


@cache
def exits(target: str = "x86") -> Any:
    torch.manual_seed(1)
    model = Exiting().eval()
    for head in model.heads:
        head.weight.data *= 20  # type: ignore[union-attr]
    return graphopt.optimize(model, images(2), target=target, calibration=images(), measure=False)

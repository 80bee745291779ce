"""Small networks for stages: a cheap one and a better one of the same task, quantized, and a network with exits."""

from __future__ import annotations

import itertools
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


class Large(nn.Module):
    """Of the same task; takes several times as long as `Cheap`."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        widths = [3, 32, 32, 32]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in itertools.pairwise(widths))
        )
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(x).mean((2, 3)))
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
    """Noise on colours that differ from image to image."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=random) + torch.randn(count, 3, 1, 1, generator=random)


def classes(x: Tensor) -> Tensor:
    """Which of five directions the colour of an image points to."""
    directions = torch.randn(5, 3, generator=torch.Generator().manual_seed(9))
    return (x.mean((2, 3)) @ directions.T).argmax(1)


def trained(model: nn.Module, steps: int) -> nn.Module:
    """A network that tells these classes, the better the longer it learned."""
    x = images(128, seed=7)
    y, optimizer = classes(x), torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        answers = model(x)
        parts = answers if isinstance(answers, list) else [answers]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([nn.functional.cross_entropy(part, y) for part in parts]).sum())
        optimizer.step()
    return model.eval()


@cache
def optimized(large: bool = False, target: str = "x86") -> Any:
    """One of the two networks in int8."""
    torch.manual_seed(0)
    model = trained(Large(), 60) if large else trained(Cheap(), 30)
    return graphopt.optimize(model, images(2), target=target, calibration=images(), measure=False)


@cache
def exits(target: str = "x86") -> Any:
    torch.manual_seed(0)
    model = trained(Exiting(), 40)
    return graphopt.optimize(model, images(2), target=target, calibration=images(), measure=False)

"""The network and images that tests of bits by layer share."""

from __future__ import annotations

from typing import Any

import torch
from rewriting import Model
from torch import Tensor, nn

from graphopt.passes.quantization import MixedPrecision
from graphopt.targets import find

X86 = find("x86")

BATCHES = [[part] for part in torch.split(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 16)]

CHOICES = (2, 4, 8)


def residual() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.stem(x))
        y = torch.relu(y + m.second(torch.relu(m.first(y))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        first=nn.Conv2d(8, 16, 3, padding=1),
        second=nn.Conv2d(16, 8, 1),
        head=nn.Linear(8, 5),
    )


def mixed(**options: Any) -> MixedPrecision:
    return MixedPrecision(X86, BATCHES, **({"choices": CHOICES} | options))


WEIGHTS = {"stem": 3 * 8 * 9, "first": 8 * 16 * 9, "second": 16 * 8, "head": 8 * 5}

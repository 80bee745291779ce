"""Numbers of small tensors as lists, and formulas on them as loops, for tests of what distillation compares."""

from __future__ import annotations

import math
from typing import Any

import torch
from distilling import computed
from torch import Tensor

from graphopt.training.distillation import METHODS

N = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(channels: int, size: int, seed: int) -> Tensor:
    return drawn(N, channels, size, size, seed=seed)


S, T = maps(3, 2, 1), maps(3, 2, 2)


def rows(value: Tensor) -> list[list[float]]:
    """Each sample as a list of numbers."""
    return value.double().flatten(1).tolist()


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def unit(values: list[float]) -> list[float]:
    return [v / norm(values) for v in values]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def mean_squared(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def method(name: str, student: Any, teacher: Any, term: int = 0) -> Tensor:
    return computed(METHODS[name].terms[term], student, teacher)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)

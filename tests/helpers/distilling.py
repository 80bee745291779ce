"""Small networks to distill, and what a term computes on plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.training.distillation.places import Answer, Place
from graphopt.training.distillation.terms import Comparison, Term

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = X.mean((2, 3)).argmax(1)
TOKENS = torch.randn(32, 5, 8, generator=torch.Generator().manual_seed(2))


def convolutional(width: int, classes: int = 3, seed: int = 0) -> nn.Module:
    """Two stages, 8x8 and 4x4, with `width` and twice as many channels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (3, width, 1), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)
    ):  # fmt: skip
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)).eval()


class Attention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        sizes = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (layer(x).reshape(sizes).transpose(1, 2) for layer in (self.query, self.key, self.value))
        found: Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


class Transformer(nn.Module):
    """[N, 5, 8] -> logits [N, 3]; two layers of two heads."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, size)
        self.attentions = nn.ModuleList(Attention(size, 2) for _ in range(2))
        self.mixers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
            for _ in range(2)
        )
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for attention, mixer in zip(self.attentions, self.mixers, strict=True):
            x = x + attention(x)
            x = x + mixer(x)
        logits: Tensor = self.head(x[:, 0])
        return logits


def student(seed: int = 0, **options: Any) -> Graph:
    return Graph.capture(convolutional(4, seed=seed, **options), X[:2])


def computed(term: Term, student: Sequence[Tensor | Sequence[Tensor]], teacher: Sequence[Any]) -> Tensor:
    """The distances of a term, where the values at places of student and teacher are these."""
    sides = [[_place(values) for values in side] for side in (student, teacher)]
    comparison = Comparison(term, [(a[0], b[0]) for a, b in zip(*sides, strict=True)])
    known = [{key: v for _, found in side for key, v in found.items()} for side in sides]
    return comparison.distance(comparison.student(known[0], known[1]), comparison.teacher(known[1], known[0]))


def _place(values: Tensor | Sequence[Tensor]) -> tuple[Place, dict[Answer, Tensor]]:
    several = [values] if isinstance(values, Tensor) else list(values)
    nodes = tuple(Answer(value) for value in several)
    return Place("here", nodes), dict(zip(nodes, several, strict=True))

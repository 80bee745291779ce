"""The network and images that tests of `Factorize` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from blocks import conv, conv_bn, images
from rewriting import Model, flat
from torch import Tensor, nn

from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

DATA = [[images(16, seed=s)] for s in range(3)]


def network(width: int = 24) -> nn.Module:
    """Convolutions with some low rank in them, a residual sum, a head."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = F.relu(y + m.norm(m.second(m.first(y))))
        return m.head(m.wide(y).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Model(
        body,
        stem=conv_bn(3, width),
        first=conv_bn(width, width),
        second=conv(width, width, bias=False),
        norm=nn.BatchNorm2d(width),
        wide=conv_bn(width, 2 * width, 1),
        head=nn.Linear(2 * width, 10),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            u, s, v = torch.linalg.svd(module.weight.data.flatten(1), full_matrices=False)
            module.weight.data = (u * (s * torch.linspace(1, 0.05, len(s)) ** 2) @ v).reshape(module.weight.shape)
    return model


def distance(graph: Graph, other: Graph) -> float:
    """Relative squared error of the outputs on the data."""
    lost = power = 0.0
    with torch.no_grad():
        for (x,) in DATA:
            for a, b in zip(flat(graph(x)), flat(other(x)), strict=True):
                lost += float((a - b).square().sum())
                power += float(a.square().sum())
    return lost / power


class Clock:
    """Pretends: every operator takes a millisecond, and every million multiply-accumulates a given time."""

    def __init__(self, per_operator: float, per_million: float) -> None:
        self.per_operator, self.per_million, self.calls = per_operator, per_million, 0

    def __call__(self, graphs: Sequence[Graph]) -> list[float]:
        self.calls += 1
        return [
            self.per_operator * sum(Layer.of(n) is not None for n in g.calls())
            + self.per_million * measure.macs(g) / 1e6
            for g in graphs
        ]

"""A small elastic network, and data that it learns from."""

from __future__ import annotations

import torch
from torch import nn

from graphopt import Graph
from graphopt.passes.elastic import Elastic

X = torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(1))
Y = (X[:, :, ::2].mean((1, 2, 3)) > 0).long()


def elastic() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    graph = Graph.capture(model.eval(), (X[:2],))
    Elastic(widths=(0.25, 0.5), kernels=(1,))(graph)
    return graph

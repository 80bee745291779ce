"""A small residual network with gates, which open for some images and not for others."""

from __future__ import annotations

from typing import Any

import torch
from rewriting import randomised
from torch import Tensor, nn

from graphopt import Graph
from graphopt.analysis.gates import gates
from graphopt.execution.executor import Executor
from graphopt.passes import AddGates


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.two(self.norm(self.one(x)).relu())
        total: Tensor = self.shortcut(x) + found
        return total.relu()


class Residual(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))
        return found


def residual(*, batch: bool = True, seed: int = 0) -> Graph:
    """Captured for images [N, 3, 12, 12], or for one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = randomised(Residual()).eval()
    return Graph.capture(model, images(2 if batch else 1), dynamic_batch=batch)


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 12, 12, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)


def half_open(graph: Graph, count: int = 64, seed: int = 1) -> Graph:
    """Let each gate be open for half of some images, in place."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gates(graph):
        _, weight, bias = gate.logits.args
        with torch.no_grad():
            graph.parameter(weight).copy_(torch.randn(graph.parameter(weight).shape, generator=generator))  # type: ignore[arg-type]
            found = [Executor(graph).run([gate.logits], [x])[gate.logits] for x in torch.split(images(count), 1)]
            graph.parameter(bias).sub_(torch.cat(found).median(0).values)  # type: ignore[arg-type]
    return graph


def gated(*, batch: bool = True, seed: int = 0, **options: Any) -> Graph:
    graph = residual(batch=batch, seed=seed)
    AddGates(**options)(graph)
    return half_open(graph)


def openings(graph: Graph, x: Tensor) -> Tensor:
    """Which gates are open, bool [N, gates]."""
    conditions = [gate.condition for gate in gates(graph)]
    with torch.no_grad():
        values = Executor(graph).run(conditions, [x])
    return torch.stack([values[node].flatten(1)[:, 0] for node in conditions], 1)

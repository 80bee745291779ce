"""A small network of two stages of residual blocks, and what it answers with halting, computed sample by sample."""

from __future__ import annotations

from typing import Any

import gated
import torch
from rewriting import randomised
from torch import Tensor, nn

from graphopt import Graph
from graphopt.analysis.halting import halting_stages
from graphopt.execution.executor import Executor


class Stages(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Sequential(gated.Block(8, 8, 1), gated.Block(8, 8, 1))
        self.two = nn.Sequential(gated.Block(8, 16, 2), gated.Block(16, 16, 1), gated.Block(16, 16, 1))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.two(self.one(self.stem(x).relu())).mean((2, 3)))
        return found


class Tokens(nn.Module):
    """Two transformer blocks on [N, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def network(seed: int = 0) -> Stages:
    torch.manual_seed(seed)
    made: Any = randomised(Stages()).eval()
    return made  # type: ignore[no-any-return]


def with_weights(graph: Graph, seed: int = 3) -> Graph:
    """Heads that let some samples (and positions) stop and others go on."""
    generator = torch.Generator().manual_seed(seed)
    x = gated.images(64)
    for stage, known in enumerate(halting_stages(graph)):
        for number, rest in enumerate(known.rests):
            parts = {n: p for n, p in graph.named_parameters() if n.startswith(f"halting_{stage}.{number}.")}
            h: Any = rest.args[1]
            with torch.no_grad():
                for part in parts.values():
                    part.copy_(0.1 * torch.randn(part.shape, generator=generator))
                factor = 3.0 / float(_logits(graph, h, x).std())
                for part in parts.values():
                    part.mul_(factor)
                parts[f"halting_{stage}.{number}.whole.bias"].sub_(float(_logits(graph, h, x).median()) - 1.0)
    return graph


def _logits(graph: Graph, h: Any, x: Tensor) -> Tensor:
    (logits,) = h.args
    return torch.cat([Executor(graph).run([logits], [one])[logits] for one in torch.split(x, 1)])


def stage_by_loops(blocks: nn.Sequential, heads: list[Any], x: Tensor, threshold: float) -> tuple[Tensor, list[int]]:
    """Figurnov et al. 2017, algorithm 1, for one sample [1, C, H, W]: the stage's answer, and how many blocks ran."""
    total, answer, count = 0.0, torch.zeros(()), 0
    for number, block in enumerate(blocks):
        x, count = block(x), count + 1
        h = heads[number](x) if number < len(heads) else 1.0
        if number == len(heads) or total + h >= 1 - threshold:
            return answer + (1 - total) * x, [count]
        answer, total = answer + h * x, total + h
    raise AssertionError("the last block ends a stage")

"""Adam for a few vectors, its moments in buffers, which checkpoints keep. Kingma and Ba 2015, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.ir.graph import Graph

BETAS, TINY = (0.5, 0.999), 1e-8  # as DARTS has them


class Adam(nn.Module):
    """See the head of this file; `hold` says what for."""

    first: Tensor
    second: Tensor
    steps: Tensor

    def hold(self, graph: Graph, nodes: Sequence[Node]) -> None:
        """Begin with nothing, for constants of a graph, vectors all."""
        size = sum(len(graph.parameter(node)) for node in nodes)
        self.register_buffer("first", torch.zeros(size))
        self.register_buffer("second", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def taken(self) -> int:
        """Steps so far."""
        return int(self.steps)

    @torch.no_grad()
    def update(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None], rate: float) -> None:
        """One step, in place."""
        flat = torch.cat([torch.zeros_like(v) if g is None else g for v, g in zip(values, gradients, strict=True)])
        self.steps.add_(1)
        self.first.lerp_(flat, 1 - BETAS[0])
        self.second.lerp_(flat.square(), 1 - BETAS[1])
        first, second = self.first / (1 - BETAS[0] ** self.taken), self.second / (1 - BETAS[1] ** self.taken)
        moves = torch.split(rate * first / (second.sqrt() + TINY), [len(v) for v in values])
        for value, move in zip(values, moves, strict=True):
            value -= move

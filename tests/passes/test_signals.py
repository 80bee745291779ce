"""Signals [N, C, T] and sequences [N, T, C] have channels in other places; heads read them where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.passes import AddExits, AddExperts, AddGates, AddHalting

CHANNELS, LENGTH = 6, 11


class Signal(nn.Module):
    """A residual network of one dimension, as those for audio."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm1d(CHANNELS)) for _ in range(3)
        )
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x.mean(2))


class Sequence(nn.Module):
    """The same of linear layers, behind patches of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(2, CHANNELS, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS), nn.GELU(), nn.Linear(CHANNELS, CHANNELS)
            )
            for _ in range(3)
        )
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


PASSES: dict[str, Any] = {
    "gates": AddGates(), "halting": AddHalting(), "positions": AddHalting(what="positions"), "exits": AddExits(),
    "experts": AddExperts(experts=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Signal, Sequence])
@pytest.mark.parametrize("name", PASSES)
def test_heads_read_channels(kind: type[nn.Module], name: str) -> None:
    torch.manual_seed(0)
    model, x = randomised(kind()).eval(), torch.randn(3, 2, LENGTH)
    graph = Graph.capture(model, x)
    before = set(dict(graph.named_parameters()))
    assert PASSES[name](graph)
    graph.refresh()
    added = [value for key, value in graph.named_parameters() if key not in before and value.dim() == 2]
    expected = {CHANNELS, 16} if name == "gates" else {CHANNELS}  # 16: hidden units
    widths = {value.shape[1] for value in added}
    assert CHANNELS in widths
    assert widths <= expected
    longer = torch.randn(3, 2, LENGTH)
    with torch.no_grad():
        answers = graph(longer)
    last = answers[-1] if isinstance(answers, (tuple, list)) else answers
    assert last.shape == (3, 4)

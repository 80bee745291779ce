"""What tests of training share: a small network with batch norms, its data, and its simulated graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from capture_once import capture_once
from rewriting import randomised
from torch import Tensor, nn

from graphopt.compiler.recipes import prepare
from graphopt.data import Calibration
from graphopt.formats import Format
from graphopt.formats.uniform import with_bits
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import Target, find
from graphopt.training import Compression

X = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(1))
Y = (X.mean((1, 2, 3)) > 0).long() + (X[:, 0].mean((1, 2)) > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3),
        )
    ).eval()  # fmt: skip


def few_bits(weights: int = 3, activations: int = 4, *, target: str = "x86", **changes: bool) -> Target:
    """A target whose formats have few bits; `changes` are of the weights' format."""
    chosen = find(target)
    formats = chosen.formats
    assert isinstance(formats.weights, Format)
    return chosen.replace(
        weights=replace(formats.weights, bits=weights, **changes),
        activations=with_bits(formats.activations, activations),
    )


def simulated(target: Target, model: nn.Module | None = None) -> Graph:
    """The network with quantizers, its codes the nearest ones."""
    graph = capture_once(network() if model is None else model, X[:2])
    for each in [*prepare(target), Quantize(target, Calibration(X, graph))]:
        each(graph)
        graph.refresh()
    return graph


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    return 100 * float((model(X).argmax(1) == Y).double().mean())


class Stops(Compression):
    """Presses Ctrl-C in front of a step; None: never."""

    def __init__(self, at: int | None) -> None:
        self.left = at

    def step(self, progress: float) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

"""Networks and a training loop that tests of masks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.passes.sparsity import (
    masks,
)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def kept(graph: Graph) -> dict[str, Tensor]:
    """Every mask by the name of its weight."""
    return {str(m.weight.target): graph.tensor(m.mask) for m in masks(graph)}

"""Networks that tests of weights in blocks share."""

from __future__ import annotations

import torch
from rewriting import apply, capture
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.targets import find

X86 = find("x86")

EXACT = X86.replace(block_products="float32")


def perceptron(features: int = 72) -> nn.Module:
    """Sizes that no block divides."""
    layers = nn.Linear(features, 40), nn.GELU(), nn.Linear(40, 24, bias=False), nn.Tanh(), nn.Linear(24, 5)
    return nn.Sequential(*layers).eval()


def tokens(count: int = 3, features: int = 72) -> Tensor:
    return torch.randn(count, 7, features)


def quantized(model: nn.Module, *inputs: Tensor, by: QuantizeWeights | None = None) -> Graph:
    graph = capture(model, *inputs)
    apply(by or QuantizeWeights(), graph)
    return graph

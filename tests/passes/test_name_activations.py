"""Activations that models spell out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import assert_close, capture
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.simplify import Simplify

aten = torch.ops.aten
ROOT = math.sqrt(2 / math.pi)
SPELLINGS: dict[str, tuple[object, Callable[[Tensor], Tensor]]] = {
    "gelu of GPT-2": (aten.gelu.default, lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x.pow(3))))),
    "gelu by products": (aten.gelu.default, lambda x: x * 0.5 * (1 + (0.79788456 * x * (1 + 0.044715 * x * x)).tanh())),
    "gelu by erf": (aten.gelu.default, lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu by a constant": (aten.gelu.default, lambda x: x * ((x * torch.tensor(0.70710678)).erf() + 1) / 2),
    "mish": (aten.mish.default, lambda x: x * F.softplus(x).tanh()),
    "mish by logarithms": (aten.mish.default, lambda x: torch.tanh(torch.log1p(torch.exp(-x.abs())) + x.relu()) * x),
    "hard_sigmoid": (aten.hardsigmoid.default, lambda x: (x + 3).clamp(0, 6) / 6),
    "hard_sigmoid by relu6": (aten.hardsigmoid.default, lambda x: F.relu6(3 + x) * (1 / 6)),
    "hard_sigmoid by clamp": (aten.hardsigmoid.default, lambda x: (x / 6 + 0.5).clamp(0, 1)),
}  # fmt: skip


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(8, 8), function, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def simplified(function: Callable[[Tensor], Tensor]) -> Graph:
    model, x = Between(function).eval(), 4 * torch.randn(16, 8)
    graph = capture(model, x)
    Simplify()(graph)
    graph.refresh()
    assert_close(graph(x), model(x))
    return graph


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_the_operator(name: str) -> None:
    operator, function = SPELLINGS[name]
    graph = simplified(function)
    assert [node.target for node in graph.calls()] == [aten.linear.default, operator, aten.linear.default]


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "other factor": lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x.pow(3)))),
    "other clip": lambda x: (x + 3).clamp(0, 6.001) / 6,
    "flat far out": lambda x: x.clamp(-1e4, 20) * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "a factor for each channel": lambda x: x * 0.5 * (torch.arange(8) / 8 + torch.erf(x / math.sqrt(2))),
    "two values": lambda x: x * 0.5 * (1 + torch.erf(x.flip(1) / math.sqrt(2))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_quite_one_stays(name: str) -> None:
    graph = simplified(OTHERS[name])
    assert not graph.calls(aten.gelu.default, aten.mish.default, aten.hardsigmoid.default)


def test_what_others_read_of_the_inside_stays() -> None:
    def function(x: Tensor) -> Tensor:
        inner = torch.erf(x / math.sqrt(2))
        return x * 0.5 * (1 + inner) + inner

    graph = simplified(function)
    assert len(graph.calls(aten.gelu.default)) == len(graph.calls(aten.erf.default)) == 1

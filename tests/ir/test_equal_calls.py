"""Calls that compute the same are found whatever leads to them; what may differ is left apart."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.ir.equal_calls import equal_calls, merge_equal_calls
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self, body: Callable[[Model, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.twin = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twin.load_state_dict(self.conv.state_dict())
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def captured(body: Callable[[Model, Tensor], object]) -> Graph:
    return Graph.capture(Model(body).eval(), X)


EQUAL: dict[str, Callable[[Model, Tensor], object]] = {
    "a layer": lambda m, x: m.conv(x) + m.conv(x).relu(),
    "a chain": lambda m, x: m.conv(x).relu().flatten(1) - m.conv(x).relu().flatten(1).sigmoid(),
    "operators with keywords": lambda m, x: F.pad(x, (1, 1), value=2.0) * F.pad(x, (1, 1), value=2.0),
    "lists of values": lambda m, x: torch.cat([x, x.relu()], 1) + torch.cat([x, x.relu()], 1),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_calls_become_one(name: str) -> None:
    graph = captured(EQUAL[name])
    wanted, before = graph(X), len(graph.calls())
    merged = merge_equal_calls(graph, operator.is_)
    graph.refresh()
    assert merged
    assert len(graph.calls()) == before - len(merged)
    assert torch.equal(graph(X), wanted)  # type: ignore[arg-type]
    assert not merge_equal_calls(graph, operator.is_)


APART: dict[str, Callable[[Model, Tensor], object]] = {
    "other arguments": lambda m, x: F.pad(x, (1, 0)) + F.pad(x, (0, 1)),
    "numbers of other types": lambda m, x: (x > 0).add(1).sum() + (x > 0).add(1.0).sum(),
    "other operands": lambda m, x: (x - x.relu()) * (x.relu() - x),
    "random numbers": lambda m, x: F.dropout(x, 0.5, True) + F.dropout(x, 0.5, True),
    "layers that have a weight each": lambda m, x: m.conv(x) + m.twin(x),
}


@pytest.mark.parametrize("name", APART)
def test_calls_that_may_differ_stay_apart(name: str) -> None:
    graph = captured(APART[name])
    shared = ("relu", "gt")  # what both sides read may well be one
    assert all(node.name.startswith(shared) for node in equal_calls(graph, operator.is_))


def test_equal_weights_are_one_where_they_do_not_change_any_more() -> None:
    graph = captured(APART["layers that have a weight each"])
    wanted = graph(X)
    assert merge_equal_calls(graph, torch.equal) == [("twin", "conv")]
    graph.refresh()
    assert len(list(graph.parameters())) == 2
    assert torch.equal(graph(X), wanted)  # type: ignore[arg-type]


def test_simplify_computes_equal_calls_once_and_says_so() -> None:
    graph = captured(EQUAL["a layer"])
    changes = Simplify()(graph)
    graph.refresh()
    assert [(change.site, change.what) for change in changes] == [("conv", "computed once: the same as conv")]
    assert not Simplify()(graph)


def test_simplify_leaves_a_quantized_graph_its_grids() -> None:
    graph = captured(EQUAL["a layer"])
    Quantize(find("x86"), [[X]])(graph)
    graph.refresh()
    before = str(graph)
    Simplify()(graph)
    graph.refresh()
    assert str(graph) == before

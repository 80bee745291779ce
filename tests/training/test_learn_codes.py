"""Codes that learn with the network: the loss, the gradient of signs, what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.ir.graph import Graph
from graphopt.passes import BinaryCodes
from graphopt.retrieval import compare
from graphopt.training import LearnCodes
from graphopt.training.hashing import neighbour_loss, signs
from graphopt.utils.errors import InputError


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24)).eval()
    return model, torch.randn(600, 12)


def coded(method: Any = "random", frozen: bool = False) -> tuple[nn.Module, Tensor, Graph]:
    model, x = network()
    graph = capture(model.requires_grad_(not frozen), x[:2])
    apply(BinaryCodes(16, [[x]], method=method), graph)
    return model, x, graph


def recall(model: nn.Module, graph: Graph, x: Tensor) -> float:
    with torch.no_grad():
        features, codes = model(x), graph(x)
    return compare(features[100:], codes[100:], features[:100], codes[:100], among=(10, 50), timed=False).recall[50]


@pytest.mark.parametrize("method", ["random", "mean"])
def test_neighbours_come_back(method: Any) -> None:
    model, x, graph = coded(method)
    before, text = recall(model, graph, x), str(graph)
    graphopt.train(graph, x, compress=[LearnCodes(0.1, 0.2)], epochs=30, batch_size=300, rate=3e-3)
    assert recall(model, graph, x) > before + 0.05
    assert str(graph) == text
    assert graph(x).dtype == torch.uint8


def test_only_the_projection_learns_where_the_network_is_frozen() -> None:
    _, x, graph = coded(frozen=True)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    graphopt.train(graph, x, compress=[LearnCodes()], epochs=1, batch_size=200, rate=1e-2)
    moved = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"codes.weight", "codes.bias"}


def test_the_loss_is_that_of_the_head_of_the_file() -> None:
    generator = np.random.default_rng(0)
    x, b = generator.standard_normal((6, 4)), np.sign(generator.standard_normal((6, 8)))
    similar, alike = np.corrcoef(x), b @ b.T / 8
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = (np.exp(m[i, others] / t) for m, t in ((similar, 0.3), (alike, 0.2)))
        total -= (p / p.sum() * np.log(q / q.sum())).sum() / 6
    found = neighbour_loss(torch.from_numpy(similar), torch.from_numpy(alike), 0.3, 0.2)
    assert float(found) == pytest.approx(total)


def test_gradients_of_signs_go_straight_through_a_window() -> None:
    scores = torch.tensor([[0.5, -3.0], [-2.5, 1.0], [0.0, 2.0]], requires_grad=True)
    found = signs(scores)
    assert found.tolist() == [[1, -1], [-1, 1], [-1, 1]]
    (found * torch.tensor([[1.0, 2.0]])).sum().backward()
    assert scores.grad is not None
    # windows: mean absolute scores, 1 and 2
    assert scores.grad.tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def test_the_last_batch_may_be_small() -> None:
    _, x, graph = coded()
    graphopt.train(graph, x[:201], compress=[LearnCodes()], epochs=1, batch_size=100)


def test_it_says_what_it_needs() -> None:
    model, x = network()
    with pytest.raises(InputError, match="run BinaryCodes first"):
        graphopt.train(capture(model, x[:2]), x, compress=[LearnCodes()], epochs=1)
    for options in ({"features_temperature": 0.0}, {"codes_temperature": float("inf")}, {"weight": -1.0}):
        with pytest.raises(InputError, match="must be over 0"):
            LearnCodes(**options)

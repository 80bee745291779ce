"""Masks grow by a schedule, and hold weights at zero through training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import capture
from sparsifying import kept, perceptron
from torch import nn

from graphopt.ir.graph import Graph
from graphopt.passes.sparsity import (
    Sparsify,
    masks,
    release,
    zero_share,
)


def train(graph: Graph, steps: int = 20, rate: float = 0.05, **options: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 12, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    optimizer = torch.optim.SGD(graph.parameters(), rate, momentum=0.9, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(graph(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("schedule, shares", [("linear", [0.2, 0.4, 0.6, 0.8]), ("cubic", [0.4625, 0.7, 0.7875, 0.8])])
def test_the_share_grows_as_the_schedule_says(schedule: Any, shares: list[float]) -> None:
    graph = capture(nn.Sequential(nn.Linear(40, 50)), torch.randn(2, 40))
    seen: list[float] = []
    Sparsify(0.8, steps=4, schedule=schedule, fine_tune=lambda g: seen.append(zero_share(g)))(graph)
    assert seen == pytest.approx(shares, abs=1e-6)


def test_a_further_run_starts_from_the_share_there_is() -> None:
    """Scores may be negative; what is masked stays masked all the same."""
    graph = capture(nn.Sequential(nn.Linear(40, 50)), torch.randn(2, 40))
    seen: list[float] = []
    Sparsify(0.4)(graph)
    options: dict[str, Any] = {"steps": 2, "fine_tune": lambda g: seen.append(zero_share(g))}
    Sparsify(0.8, criterion=lambda g, w: -g.tensor(w), **options)(graph)
    assert seen == pytest.approx([0.6, 0.8], abs=1e-6)


def test_a_pattern_grows_block_by_block() -> None:
    graph = capture(nn.Sequential(nn.Linear(8, 6)), torch.randn(2, 8))
    seen: list[float] = []
    Sparsify(pattern=(2, 4), steps=2, fine_tune=lambda g: seen.append(zero_share(g)))(graph)
    assert seen == [0.25, 0.5]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_only_grow(scope: Any) -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    Sparsify(0.5, scope=scope)(graph)
    first = {name: mask.clone() for name, mask in kept(graph).items()}
    with torch.no_grad():  # what is masked now would be the first to stay
        for name, parameter in graph.named_parameters():
            if name in first:
                parameter += 100 * (1 - first[name])
    assert Sparsify(0.3, scope=scope)(graph) == []
    assert all(torch.equal(mask, first[name]) for name, mask in kept(graph).items())
    assert Sparsify(0.75, scope=scope)(graph)
    assert all(bool((mask <= first[name]).all()) for name, mask in kept(graph).items())
    assert zero_share(graph) == pytest.approx(0.75, abs=0.01)
    assert len(masks(graph)) == 3
    assert Sparsify(0.75, scope=scope)(graph) == []


def test_masked_weights_stay_zero_while_the_rest_trains() -> None:
    graph = capture(perceptron(), torch.randn(2, 12))
    held = [parameter for _, parameter in graph.named_parameters()]
    Sparsify(0.7)(graph)
    assert all(a is b for a, (_, b) in zip(held, graph.named_parameters(), strict=True))  # an optimizer keeps working
    before = {name: parameter.detach().clone() for name, parameter in graph.named_parameters()}
    graph.train()
    train(graph)
    graph.eval()
    for name, mask in kept(graph).items():
        moved = graph.state_dict()[name] - before[name]
        assert not moved[mask == 0].any()
        assert (moved[mask == 1] != 0).float().mean() > 0.5  # a dead unit has no gradient
    assert zero_share(graph) == pytest.approx(0.7, abs=0.01)


def test_dense_sparse_dense() -> None:
    """Mask, train, release, train: the network computes the same at the release, and all weights move afterwards."""
    graph, x = capture(perceptron(), torch.randn(2, 12)), torch.randn(6, 12)
    train(graph)
    names = {name for name, _ in graph.named_parameters()}
    Sparsify(0.5)(graph)
    train(graph)
    gone = {name: mask == 0 for name, mask in kept(graph).items()}
    sparse = graph(x).detach()
    assert release(graph)[0] == ("0", "96 weights released")
    assert torch.equal(graph(x), sparse)
    assert not masks(graph)
    assert {name for name, _ in graph.named_parameters()} == names
    assert all(not graph.state_dict()[name][where].any() for name, where in gone.items())
    train(graph)
    assert zero_share(graph) < 0.1
    assert all(graph.state_dict()[name][where].any() for name, where in gone.items())


def test_released_weights_come_back_where_asked() -> None:
    model, x = perceptron(), torch.randn(6, 12)
    graph = capture(model, x)
    Sparsify(0.5)(graph)
    release(graph, restore=True)
    assert torch.equal(graph(x), model(x))
    assert release(graph) == []

"""Training of gates: what is sampled, what is minimized, and that a plain graph is left."""

from __future__ import annotations

from typing import Any

import gated
import pytest
import torch

import graphopt
from graphopt import Graph
from graphopt.analysis.gates import gates
from graphopt.passes import AddGates
from graphopt.training.compression import Compression
from graphopt.training.gates import GumbelGates, SkipGates, open_gates
from graphopt.utils.errors import InputError

X, Y = gated.images(64), torch.arange(64) % 5


def fresh() -> Graph:
    graph = gated.residual()
    AddGates(start=1.0)(graph)
    return graph


def test_noise_opens_a_gate_as_often_as_the_sigmoid_of_its_logits_says() -> None:
    torch.manual_seed(0)
    for logit in (-2.0, 0.5, 1.5):
        z = open_gates(torch.full((20000, 1), logit), 0.0, torch.ones(()))
        assert float(z.mean()) == pytest.approx(float(torch.tensor(logit).sigmoid()), abs=0.01)
    assert open_gates(torch.tensor([[-0.1], [0.1]]), 0.0, torch.zeros(())).tolist() == [[0.0], [1.0]]


def test_the_gradient_goes_straight_through() -> None:
    logits = torch.tensor([[0.3], [-2.0]], requires_grad=True)
    open_gates(logits, 0.0, torch.zeros(())).sum().backward()
    p = torch.tensor([[0.3], [-2.0]]).sigmoid()
    torch.testing.assert_close(logits.grad, p * (1 - p))


@pytest.mark.parametrize("compression", [GumbelGates(rate=0.5), GumbelGates(work=0.6), SkipGates(0.1)])
def test_a_trained_graph_is_plain_again_and_answers_by_its_gates(compression: Compression) -> None:
    graph = fresh()
    before = str(graph)
    graphopt.train(graph, (X, Y), compress=[compression], epochs=1, batch_size=32)
    assert str(graph) == before
    assert len(gates(graph)) == 3
    torch.testing.assert_close(graph(X), torch.cat([graph(one) for one in X.split(1)]), rtol=1e-4, atol=1e-5)


def test_rates_come_to_what_was_asked_for() -> None:
    graph = fresh()
    graphopt.train(graph, (X, Y), compress=[GumbelGates(rate=0.4, weight=50.0)], epochs=60, batch_size=64, rate=0.02)
    rates = gated.openings(graph, X).float().mean(0)
    assert float(rates.mean()) == pytest.approx(0.4, abs=0.2)


def test_work_is_bounded_in_the_mean() -> None:
    from graphopt.analysis.gates import saved_macs
    from graphopt.ir import cost

    graph = fresh()
    graphopt.train(
        graph, (X, Y), compress=[GumbelGates(work=0.5, weight=100.0, noise=0.0)], epochs=60, batch_size=64, rate=0.02
    )
    closed = 1 - gated.openings(graph, X).float().mean(0)
    saved = float((closed * torch.tensor(saved_macs(graph))).sum()) / cost.macs(graph)
    assert 1 - saved == pytest.approx(0.5, abs=0.2)


def test_a_cost_closes_gates() -> None:
    graph = fresh()
    graphopt.train(graph, (X, Y), compress=[SkipGates(cost=100.0)], epochs=30, batch_size=64, rate=0.05)
    assert float(gated.openings(graph, X).float().mean()) < 0.2


def test_a_training_that_goes_on_is_the_same(tmp_path: Any) -> None:
    graphs = [fresh(), fresh()]
    for graph in graphs:
        graphopt.train(graph, (X, Y), compress=[GumbelGates(rate=0.5)], epochs=2, batch_size=32, seed=3)
    for one, other in zip(graphs[0].state_dict().values(), graphs[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GumbelGates(), "one of rate"), (lambda: GumbelGates(rate=0.5, work=0.5), "one of rate"),
        (lambda: GumbelGates(rate=1.5), "from 0 to 1"), (lambda: GumbelGates(rate=[0.5, -1.0]), "from 0 to 1"),
        (lambda: GumbelGates(rate=0.5, weight=0.0), "weight"), (lambda: SkipGates(-1.0), "cost"),
    ],
)  # fmt: skip
def test_wrong_options_of_gates_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize(
    ("compression", "says"),
    [(GumbelGates(rate=[0.5]), "1 rates for 3 gates"), (GumbelGates(work=0.0), "outside of its gates")],
)
def test_what_does_not_fit_the_graph_is_refused_before_training(compression: Compression, says: str) -> None:
    graph = fresh()
    before = str(graph)
    with pytest.raises(InputError, match=says):
        graphopt.train(graph, (X, Y), compress=[compression])
    assert str(graph) == before


def test_a_graph_without_gates_is_refused() -> None:
    with pytest.raises(InputError, match="no gates to train"):
        graphopt.train(gated.residual(), (X, Y), compress=[SkipGates()])

"""Proxies against slow references, and predicted scores."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

from graphopt import Graph, InputError
from graphopt.passes.elastic import Elastic
from graphopt.searching import Choice, Option
from graphopt.supernets import search
from graphopt.supernets.predictor import Predictor
from graphopt.supernets.proxies import gradient_norm, relu_patterns, synaptic_flow

X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)
    ).eval()


def test_gradient_norms_are_those_of_autograd() -> None:
    plain = model()
    found = gradient_norm(X, Y)(Graph.capture(plain, X[:2]))
    plain.train()
    nn.functional.cross_entropy(plain(X), Y).backward()
    assert found == pytest.approx(sum(float(p.grad.norm()) for p in plain.parameters() if p.grad is not None), rel=1e-5)


def test_synaptic_flow_is_that_of_the_paper() -> None:
    plain = model()
    found = synaptic_flow(X)(Graph.capture(plain, X[:2]))
    plain.double()
    for p in plain.parameters():
        p.data.abs_()
    plain(torch.ones(1, 2, 5, 5, dtype=torch.float64)).sum().backward()
    total = sum(float((p * p.grad).abs().sum()) for p in plain.parameters() if p.grad is not None)
    assert found == pytest.approx(math.log(total), rel=1e-6)


def test_relu_patterns_are_counted() -> None:
    plain = model()
    found = relu_patterns(X)(Graph.capture(plain, X[:2]))
    first = plain[:3](X).flatten(1) > 0
    second = plain[:5](X).flatten(1) > 0
    codes = torch.cat([first, second], 1)
    kernel = torch.tensor([[float((a == b).sum()) for b in codes] for a in codes], dtype=torch.float64)
    assert found == pytest.approx(float(torch.linalg.slogdet(kernel).logabsdet), rel=1e-6)
    with pytest.raises(InputError, match="has none"):
        relu_patterns(torch.randn(2, 3))(Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3)))
    with pytest.raises(InputError, match="looks into a graph"):
        relu_patterns(X)(plain)


def test_a_search_by_a_proxy_needs_no_training() -> None:
    graph = Graph.capture(model(), X[:2])
    Elastic(widths=(0.5,))(graph)
    found = search(graph, {"macs": 0.8}, evaluate=relu_patterns(X), data=[[X]], evaluations=8)
    assert found.score == max(each.score for each in found.tried)  # type: ignore[type-var]


def test_what_adds_up_is_predicted() -> None:
    choices = [Choice(f"c{n}", "any", tuple(Option(str(o), 0.0) for o in range(3))) for n in range(5)]
    rng = random.Random(0)
    worth = [[rng.random() for _ in range(3)] for _ in range(5)]
    every = list(itertools.product(range(3), repeat=5))
    scores = {options: sum(worth[c][o] for c, o in enumerate(options)) for options in rng.sample(every, 40)}
    predictor = Predictor(choices, scores)
    errors = [abs(predictor(options) - sum(worth[c][o] for c, o in enumerate(options))) for options in every]
    assert max(errors) < 0.02
    assert predictor.error < 0.02


def test_predicted_networks_are_evaluated_before_they_are_believed() -> None:
    graph = Graph.capture(model(), X[:2])
    Elastic(widths=(0.75, 0.5), kernels=(1,))(graph)
    asked = []

    def evaluate(model: object) -> float:
        asked.append(1)
        return relu_patterns(X)(model)  # type: ignore[arg-type]

    found = search(graph, {"macs": 0.8}, evaluate=evaluate, data=[[X]], evaluations=6, predicted=30)
    assert len(asked) == len(found.tried) <= 6
    assert found.score == max(each.score for each in found.tried)  # type: ignore[type-var]

"""Searching a supernet: within the budget, resumable, and as good as every network there is."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn

import graphopt
from graphopt import Graph, InputError, train
from graphopt.analysis.choices import extract
from graphopt.ir import cost
from graphopt.ir.choices import choices
from graphopt.passes.elastic import Elastic
from graphopt.supernets import problem_of, search
from graphopt.supernets.refit import refitted
from graphopt.training.choices import Sandwich, Softmax


@pytest.fixture(scope="module")
def trained() -> Graph:
    graph = elastic()
    train(graph, (X, Y), compress=[Sandwich(2)], epochs=8, batch_size=32, rate=0.01)
    return graph


def loss(model: Callable[[Tensor], Tensor]) -> float:
    return -float(nn.functional.cross_entropy(model(X), Y))


@pytest.mark.parametrize("solver", ["evolution", "reinforce", "random"])
def test_a_search_finds_the_best_within_the_budget(trained: Graph, solver: str) -> None:
    found = search(trained, {"macs": 0.5}, evaluate=loss, data=[[X]], solver=solver, evaluations=40)  # type: ignore[arg-type]
    problem = problem_of(trained, {"macs": 0.5})
    allowed = [a for a in itertools.product(*(range(len(c)) for c in choices(trained))) if problem.keeps(a)]
    tried = {each.options for each in found.tried}
    assert tried <= set(allowed)
    assert len(tried) > 0.7 * len(allowed)
    best = max(found.tried, key=lambda each: each.score or 0.0)
    assert found.options == best.options
    assert cost.macs(found.graph) == pytest.approx(found.costs["macs"], rel=1e-6)
    assert cost.macs(found.graph) <= 0.5 * problem.cost("macs", problem.first)
    assert loss(found.graph.eval()) == pytest.approx(found.score, rel=1e-3)
    front = found.front()
    assert found.options == front[-1].options
    assert [each.costs["macs"] for each in front] == sorted(each.costs["macs"] for each in front)


def test_a_search_goes_on_where_it_stopped(trained: Graph, tmp_path: Path) -> None:
    asked = []

    def counted(model: Callable[[Tensor], Tensor]) -> float:
        asked.append(1)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return loss(model)

    with pytest.raises(KeyboardInterrupt):
        search(trained, {"macs": 0.6}, evaluate=counted, data=[[X]], evaluations=12, folder=tmp_path)
    again = search(trained, {"macs": 0.6}, evaluate=counted, data=[[X]], evaluations=12, folder=tmp_path)
    assert len(asked) == 6 + len(again.tried) - 5
    whole = search(trained, {"macs": 0.6}, evaluate=loss, data=[[X]], evaluations=12)
    assert whole.options == again.options
    with pytest.raises(InputError, match="scores of another supernet"):
        other = trained.clone()
        with torch.no_grad():
            next(iter(other.parameters())).add_(1)
        search(other, {"macs": 0.6}, evaluate=loss, data=[[X]], evaluations=12, folder=tmp_path)
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        search(trained, {"macs": 0.6}, evaluate=loss, data=[[X]], evaluations=12, folder=tmp_path)


def test_learned_weights_decide_within_a_budget(trained: Graph) -> None:
    graph = trained.clone()
    train(graph, (X, Y), compress=[Softmax(validation=(X, Y), rate=0.1)], epochs=2, batch_size=32)
    found = search(graph, {"macs": 0.4}, data=[[X]])
    problem = problem_of(graph, {"macs": 0.4})
    allowed = [a for a in itertools.product(*(range(len(c)) for c in choices(graph))) if problem.keeps(a)]
    assert problem.damage(found.options) == pytest.approx(min(map(problem.damage, allowed)), abs=1e-6)
    assert found.score is None


def test_a_fitted_network_gives_what_the_largest_gives() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 3))
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():  # half of the channels are sums of the others
        model[0].weight[6:], model[0].bias[6:] = 0.4 * model[0].weight[:6], 0.4 * model[0].bias[:6]  # type: ignore[index, operator, union-attr]
    graph = Graph.capture(model, X[:2])
    Elastic(widths=(0.5,), layers=["0"])(graph)
    plain, fitted = extract(graph, [1]), refitted(graph, (1,), [[X[:48]], [X[48:]]])
    assert cost.macs(fitted) == cost.macs(plain) < cost.macs(extract(graph, [0]))

    @torch.no_grad()
    def close(network: Callable[[Tensor], Tensor]) -> float:
        return -float((network(X) - model(X)).square().mean())

    errors = [-close(small) for small in (plain, fitted)]
    assert errors[1] < 1e-3 * errors[0]

    options = {"evaluate": close, "data": [[X[:48]], [X[48:]]], "evaluations": 3}
    before, after = (search(graph, {"macs": 0.7}, refit=count, **options) for count in (0, 1))  # type: ignore[arg-type]
    assert before.options == after.options == (1,)
    assert before.score == pytest.approx(-errors[0], rel=1e-4)
    assert after.score == pytest.approx(-errors[1], abs=1e-6)
    assert close(after.graph) == pytest.approx(after.score)
    assert after.costs == before.costs
    for count in (-1, 1.5):
        with pytest.raises(InputError, match="refit says how many"):
            search(graph, {"macs": 0.7}, refit=count, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate returned None"):
        search(graph, {"macs": 0.7}, **{**options, "evaluate": lambda _: None})  # type: ignore[arg-type]


def test_bad_searches_are_named(trained: Graph) -> None:
    plain = Graph.capture(nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    with pytest.raises(InputError, match="has no choices"):
        search(plain, {"macs": 0.5}, evaluate=loss)
    with pytest.raises(InputError, match="out of reach"):
        search(trained, {"macs": 0.001}, evaluate=loss, data=[[X]], evaluations=5)
    with pytest.raises(InputError, match="no cost 'time'"):
        search(trained, {"time": 0.5}, evaluate=loss, data=[[X]])
    with pytest.raises(InputError, match="nothing tells the options apart"):
        search(trained, {"macs": 0.5}, data=[[X]])
    with pytest.raises(InputError, match="pass data="):
        search(trained, {"macs": 0.5}, evaluate=loss)
    with pytest.raises(InputError, match="finite"):
        search(trained, {"macs": 0.5}, evaluate=lambda model: float("nan"), data=[[X]])


def test_a_supernet_is_not_optimized_as_a_whole(trained: Graph) -> None:
    with pytest.raises(InputError, match=r"the graph has 4 choices .* optimize one network of it"):
        graphopt.optimize(trained, target="x86")

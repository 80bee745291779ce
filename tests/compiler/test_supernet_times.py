"""A supernet within a limit of time: parts at all widths, blocks that are not there, and networks that were measured whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from choosing import X, Y, elastic
from torch import Tensor, nn

from graphopt import Graph, InputError
from graphopt.analysis.choices import Costs, extract
from graphopt.compiler.supernet_times import SupernetTimes, _PartsOf
from graphopt.evaluation.resized import Alone, Branches
from graphopt.ir import cost
from graphopt.ir.choices import CHOOSE, choices
from graphopt.passes.elastic import Elastic
from graphopt.searching import Problem
from graphopt.supernets import problem_of, search


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual() -> Graph:
    torch.manual_seed(0)
    parts = (nn.Conv2d(2, 8, 3), nn.ReLU(), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    graph = Graph.capture(nn.Sequential(*parts).eval(), (X[:2],))
    Elastic(widths=(0.5,))(graph)
    return graph


def every(graph: Graph) -> Iterable[tuple[int, ...]]:
    return itertools.product(*(range(len(choice)) for choice in choices(graph)))


class CountsInstead:
    """Milliseconds that are multiply-accumulates, in the place of a clock: what they add up to is known."""

    threads = 1

    def __call__(self, parts: Sequence[Alone]) -> list[float]:
        return [self.macs(part) for part in parts]

    @staticmethod
    def macs(part: Alone) -> float:
        alone = Branches([part]).eval()
        return float(cost.macs(Graph.capture(alone, alone.example(), dynamic_batch=False)))


@pytest.mark.parametrize("make", [elastic, residual])
def test_every_network_is_the_sum_of_the_parts_that_it_computes(make: object) -> None:
    graph: Graph = make()  # type: ignore[operator]
    found = _PartsOf(Costs(graph))
    assert all(node.target is not CHOOSE for part in found.parts for node in part.nodes)
    problem = Problem(problem_of(graph, {}).choices, {"ms": found.terms(CountsInstead())}, {})  # type: ignore[arg-type]
    for options in list(every(graph))[::5]:
        assert problem.cost("ms", options) == pytest.approx(cost.macs(extract(graph, options)), rel=1e-6)


def test_a_search_keeps_a_limit_of_time(tmp_path: Path) -> None:
    graph, times = residual(), SupernetTimes("host", networks=5, cache=tmp_path)

    def loss(model: object) -> float:
        return -float(nn.functional.cross_entropy(model(X), Y))  # type: ignore[operator]

    terms = times(graph)
    assert times.agreement is not None
    assert times.agreement.networks >= 3
    whole = problem_of(graph, {}, lambda _: terms)
    limit = 0.5 * (whole.cost("ms", whole.first) + min(whole.cost("ms", options) for options in every(graph)))
    found = search(graph, {"ms": limit}, evaluate=loss, data=[[X]], evaluations=6, times=lambda _: terms)
    assert found.tried
    assert all(0 < each.costs["ms"] <= limit * (1 + 1e-6) for each in found.tried)
    shares = problem_of(graph, {"latency": 0.5}, lambda _: terms)
    assert shares.limits == {"ms": pytest.approx(0.5 * whole.cost("ms", whole.first))}


def test_limits_of_time_say_what_they_need() -> None:
    graph = elastic()
    with pytest.raises(InputError, match="needs what measures it"):
        search(graph, {"ms": 1.0}, data=[[X]])
    with pytest.raises(InputError, match="under 1"):
        problem_of(graph, {"latency": 1.5}, lambda _: [])
    with pytest.raises(InputError, match="not both"):
        problem_of(graph, {"latency": 0.5, "ms": 1.0}, lambda _: [])
    with pytest.raises(InputError, match="nothing can be timed for it here"):
        SupernetTimes("hexagon")

"""MSDNet: scales, answers, and that it is deployed as a network with exits."""

from __future__ import annotations

import pytest
import torch
from rewriting import randomised

import graphopt
from graphopt import Graph
from graphopt.ir import cost
from graphopt.networks import msdnet
from graphopt.utils.errors import InputError

X = torch.randn(4, 3, 16, 16)


@pytest.mark.parametrize("size", [16, 17, 32])
@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_every_block_answers(size: int, scales: int) -> None:
    model = msdnet(
        5,
        blocks=3,
        layers=2,
        step=1,
        channels=4,
        growth=2,
        factors=(1, 2, 4, 4)[:scales],
        bottlenecks=(1, 2, 4, 4)[:scales],
        head=8,
    )
    answers = model.eval()(torch.randn(2, 3, size, size))
    assert [answer.shape for answer in answers] == [(2, 5)] * 3


def test_scales_end_one_by_one_and_the_coarsest_stays() -> None:
    model, seen = msdnet(5, blocks=4, layers=3, step=2, channels=4, growth=2, head=8).eval(), []
    maps = model.stem(X)
    for block in model.blocks:
        maps = block(maps)
        seen.append([x.shape[2] for x in maps])
    assert [len(sizes) for sizes in seen] == sorted((len(sizes) for sizes in seen), reverse=True)
    assert seen[0][-1] == seen[-1][-1] == 4
    assert len(seen[-1]) == 1


def test_layers_are_dense() -> None:
    model = msdnet(5, blocks=1, layers=1, channels=4, growth=2, factors=(1, 2), bottlenecks=(1, 2), head=8).eval()
    (layer, *_) = model.blocks[0]
    maps = model.stem(X)
    fine, coarse = layer(maps)
    assert torch.equal(fine[:, :4], maps[0])  # what was there comes first
    assert torch.equal(coarse[:, :8], maps[1])
    assert (fine.shape[1], coarse.shape[1]) == (4 + 2, 8 + 4)
    moved = layer([maps[0] + 1, maps[1]])[1]
    assert torch.equal(moved[:, :8], coarse[:, :8])
    assert not torch.equal(moved[:, 8:10], coarse[:, 8:10])  # half of what is new is made of the finer scale
    assert torch.equal(moved[:, 10:], coarse[:, 10:])


def test_an_earlier_answer_costs_less() -> None:
    model = msdnet(5, blocks=3, layers=2, step=2, channels=4, growth=2, head=8)
    graph = Graph.capture(randomised(model).eval(), X[:2])
    from graphopt.execution.subgraph import subgraph

    shares = [cost.macs(subgraph(graph, {"x": graph.inputs[0]}, {"y": answer})) for answer in graph.outputs]
    assert shares == sorted(shares)


def test_it_is_a_network_with_exits_in_int8() -> None:
    torch.manual_seed(0)
    model = randomised(
        msdnet(5, blocks=2, layers=2, step=1, channels=4, growth=2, factors=(1, 2), bottlenecks=(1, 2), head=8)
    ).eval()
    result = graphopt.optimize(model, X[:2], target="x86", calibration=X, measure=False)
    staged = graphopt.Cascade.of_exits(result.graph, target="x86")
    staged.fit(torch.randn(40, 3, 16, 16), torch.arange(40) % 5, max_drop=50.0)
    assert staged.artifact.anytime(X[:1], budget_ms=1000.0).shape == (1, 5)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError, match="one factor and one bottleneck for each scale, got 3 and 2"):
        msdnet(5, bottlenecks=(1, 2))
    with pytest.raises(InputError, match="blocks"):
        msdnet(5, blocks=0)

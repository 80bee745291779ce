"""Noise of quantization on weights while they train: what it puts there, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import capture
from torch import Tensor, nn

import graphopt
from graphopt.ir.graph import Graph
from graphopt.passes import ProductQuantize
from graphopt.passmanager import run
from graphopt.training import QuantNoise
from graphopt.utils.errors import InputError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 30), nn.Linear(30, 20)).eval()


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def attached(kind: Any, **options: Any) -> tuple[Graph, QuantNoise]:
    graph, noise = capture(network(), images(2)), QuantNoise(kind, **options)
    noise.attach(graph)
    return graph, noise


@pytest.mark.parametrize("kind", ["zero", "product", "int8"])
def test_a_share_of_blocks_is_quantized(kind: str) -> None:
    torch.manual_seed(3)
    _, noise = attached(kind, share=0.4, block=8)
    noise.step(0.0)
    place = noise.places[1]
    weight, added = (t.detach().reshape(-1, place.block) for t in (place.weight, place.noise))
    assert place.block == 8
    hit = added.abs().sum(1) > 0
    assert 0.25 < float(hit.float().mean()) < 0.55
    there = (weight + added)[hit]
    if kind == "zero":
        assert float(there.abs().max()) == pytest.approx(0, abs=1e-7)
    if kind == "product":
        assert len(torch.unique(there.round(decimals=5), dim=0)) <= max(2, len(weight) // 4)
    if kind == "int8":
        scale = weight.reshape(30, 72).abs().amax(1).repeat_interleave(9)[hit][:, None] / 127
        assert float((there / scale - (there / scale).round()).abs().max()) < 0.02
    assert noise.places[0].block == 9  # a kernel
    assert noise.places[2].block == 6  # the largest part of a row of 30


def test_gradients_pass_as_if_nothing_were_there() -> None:
    graph, noise = attached("zero", share=0.5)
    noise.step(0.0)
    graph(images()).square().sum().backward()
    found = noise.places[2].weight.grad
    noise.finish(graph)
    model = network()
    weights = noise.places
    assert weights == []
    assert found is not None
    assert float((found != 0).float().mean()) > 0.99
    assert model[4].weight.shape == found.shape


@pytest.mark.parametrize("kind", ["zero", "product", "int8"])
def test_nothing_is_left_of_it_and_evaluations_do_not_see_it(kind: Any) -> None:
    model, x = network(), images()
    graph, seen = capture(model, images(2)), list[float]()
    before, answers = str(graph), model(x).detach()

    def near(answer: Any) -> float:
        seen.append(-float((answer(x) - answers).square().mean()))
        return seen[-1]

    graphopt.train(graph, (x, answers), loss="mse", epochs=2, batch_size=16, rate=1e-4, evaluate=near,
                   compress=[QuantNoise(kind, share=0.1, every=3)])  # fmt: skip
    assert seen[0] == pytest.approx(0, abs=1e-10)
    assert str(graph) == before
    assert not [n for n in graph.state_dict() if "noise" in n]
    assert near(graph) == pytest.approx(max(seen), abs=1e-6)


def test_who_was_trained_with_it_loses_less() -> None:
    model, x = network(), images(256)
    answers, lost = model(x).detach(), []
    for compress in ([], [QuantNoise("product", share=0.3, block=8, every=10)]):
        graph = capture(network(), images(2))
        graphopt.train(graph, (x, answers), loss="mse", epochs=12, batch_size=32, rate=2e-3, compress=compress)
        run([ProductQuantize(8)], graph)
        lost.append(float((graph(x) - answers).square().mean().detach()))
    assert lost[1] < lost[0]


def test_what_cannot_be_is_refused() -> None:
    for options, said in (
        ({"kind": "zeros"}, "unknown kind 'zeros'; did you mean 'zero'"),
        ({"share": 1.0}, "share must be over 0 and under 1"),
        ({"block": 0}, "block must be a whole number of at least 1"),
        ({"every": 0}, "every must be a whole number of at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            QuantNoise(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no convolutions or linear layers"):
        QuantNoise().attach(capture(nn.ReLU(), images(2)))

"""Fits of factors through an activation and behind a sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blocks import conv, images
from factorized import DATA, distance, network
from rewriting import Model, apply, capture
from torch import Tensor, nn

from graphopt.fitting.residual import Join
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import ChannelWise
from graphopt.passes.factorization.nonlinear import Activation, _auxiliary


@pytest.mark.thorough
@pytest.mark.parametrize("refinement", [{"nonlinear": True}, {"refine_steps": 200}])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_a_fit_through_the_activation_answers_better_behind_it(refinement: Any, activation: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(conv(3, 24, 5), nn.BatchNorm2d(24), activation())
    model[1].bias.data = torch.linspace(-1.5, 1.0, 24)
    whole = capture(model, images(2))
    lost = []
    for chosen in ({}, refinement):
        graph = whole.clone()
        apply(ChannelWise(4, data=DATA, **chosen), graph)
        lost.append(distance(whole, graph))
    assert lost[1] < 0.99 * lost[0]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_auxiliary_responses_are_the_minimum(activation: nn.Module, penalty: float) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(1, 5, 1), activation), torch.randn(1, 1, 4, 4))
    layer = next(layer for n in graph.calls() if (layer := Layer.of(n)))
    f = Activation.behind(graph, layer.node, 5)
    assert f is not None
    assert f.clips is not None
    y, response = 4 * torch.randn(200, 5), 4 * torch.randn(200, 5)
    found = _auxiliary(f, f(y), y, response, f.clips, penalty)

    def cost(z: Tensor) -> Tensor:
        return (f(y) - f(z)).square() + penalty * (z - response).square()

    grid = torch.linspace(-30, 30, 6001)[:, None, None].expand(-1, *y.shape)
    assert bool((cost(found) <= cost(grid).amin(0) + 1e-4).all())


def test_a_sum_is_seen_behind_a_layer_and_its_norm() -> None:
    graph = capture(network(), images(2))
    layers = {graph.site(n): n for n in graph.calls() if Layer.of(n)}
    join = Join.behind(layers["second"])
    assert join is not None
    assert join.norm is not None
    assert join.other.target is torch.ops.aten.relu.default
    assert Join.behind(layers["first.0"]) is None


def test_a_layer_before_a_sum_makes_up_for_what_the_stream_has_lost() -> None:
    """The stem is factorized badly; the branch behind it knows what is missing from the stream."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return y + m.second(m.first(y).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    whole = capture(Model(body, stem=conv(3, 16), first=conv(16, 48), second=conv(48, 16, 1)), images(2))
    with_branch, without = whole.clone(), whole.clone()
    apply(ChannelWise(10, layers={"first": None}, data=DATA), with_branch)
    stem = {"stem.0.weight", "stem.1.weight", "stem.bias"}
    apply(ChannelWise(10, layers={"first": None}), without)
    without.load_state_dict(without.state_dict() | {k: v for k, v in with_branch.state_dict().items() if k in stem})
    assert distance(whole, with_branch) < 0.9 * distance(whole, without)

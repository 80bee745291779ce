"""High biases move to the next layer where the value between practically never falls below them."""

from __future__ import annotations

import pytest
import torch
from rewriting import apply, assert_close, capture, names
from torch import nn

from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.equalization.absorb_bias import AbsorbHighBias

ABSORB = AbsorbHighBias()


def model(
    reader: nn.Module, activation: nn.Module | None = None, bias: float = 5.0, weight: float = 0.5
) -> nn.Sequential:
    """conv, norm with the given moments in channels 0 and 2, relu, reader."""
    built = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), activation or nn.ReLU(), reader).eval()
    with torch.no_grad():
        built[1].bias.copy_(torch.tensor([bias, 0.1, 0.8 * bias, -1.0]))
        built[1].weight.copy_(torch.tensor([weight, 1.0, -weight, 1.0]))
    return built


def absorbed(built: nn.Sequential) -> tuple[Graph, Graph, list[Change]]:
    """Before, after, changes; norms folded in both."""
    graph = capture(built, torch.randn(2, 3, 6, 6))
    apply(FoldBatchNorm(), graph)
    before = graph.clone()
    changes = apply(ABSORB, graph)
    return before, graph, changes


@pytest.mark.parametrize("reader", [nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, bias=False), nn.Conv2d(4, 6, 2, groups=2)])
def test_the_outputs_stay_where_the_channels_exceed_the_constant(reader: nn.Module) -> None:
    built = model(reader)
    _, graph, changes = absorbed(built)
    assert len(changes) == 1
    # inputs small enough to keep each channel above mean - 3 deviations
    x = torch.randn(2, 3, 6, 6) * 0.1
    inner = built[1](built[0](x))
    constant = (built[1].bias - 3 * built[1].weight.abs()).clamp(min=0).reshape(-1, 1, 1)
    assert bool((inner >= constant)[:, [0, 2]].all())
    assert_close(graph(x), built(x), 1e-5)


def test_the_bias_falls_by_mean_minus_three_deviations() -> None:
    before, graph, _ = absorbed(model(nn.Conv2d(4, 3, 1)))
    moved = before.state_dict()["0.bias"] - graph.state_dict()["0.bias"]
    torch.testing.assert_close(moved, torch.tensor([3.5, 0.0, 2.5, 0.0]))


def test_values_below_the_constant_are_cut_off_at_it() -> None:
    built = model(nn.Conv2d(4, 3, 1))
    _, graph, _ = absorbed(built)
    x = torch.randn(2, 3, 6, 6) * 30
    constant = torch.tensor([3.5, 0.0, 2.5, 0.0]).reshape(-1, 1, 1)
    expected = built[3](torch.maximum(built[1](built[0](x)), constant))
    assert_close(graph(x), expected, 1e-5)


@pytest.mark.parametrize(
    "reader",
    [nn.Conv2d(4, 3, 3, padding=1), nn.ConvTranspose2d(4, 3, 3), nn.MaxPool2d(2), nn.Linear(6, 3)],
)
def test_readers_that_cannot_carry_the_constant_leave_it(reader: nn.Module) -> None:
    _, _, changes = absorbed(model(reader))
    assert changes == []


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Hardswish(), nn.LeakyReLU(), nn.Identity()])
def test_other_activations_leave_it(activation: nn.Module) -> None:
    _, _, changes = absorbed(model(nn.Conv2d(4, 3, 1), activation))
    assert changes == []


def test_moderate_biases_stay() -> None:
    assert absorbed(model(nn.Conv2d(4, 3, 1), bias=1.0))[2] == []


def test_without_a_folded_norm_nothing_is_known_and_nothing_moves() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)), torch.randn(2, 3, 6, 6))
    assert ABSORB(graph) == []


def test_a_second_run_finds_nothing_more() -> None:
    _, graph, _ = absorbed(model(nn.Conv2d(4, 3, 1)))
    assert ABSORB(graph) == []


def test_a_larger_distance_moves_less() -> None:
    graph = capture(model(nn.Conv2d(4, 3, 1)), torch.randn(2, 3, 6, 6))
    apply(FoldBatchNorm(), graph)
    before = graph.state_dict()["0.bias"].clone()
    apply(AbsorbHighBias(deviations=8.0), graph)
    torch.testing.assert_close(
        before - graph.state_dict()["0.bias"], torch.tensor([1.0, 0.0, 0.0, 0.0]), rtol=0, atol=1e-4
    )


def test_the_value_between_needs_a_smaller_range() -> None:
    before, graph, _ = absorbed(model(nn.Conv2d(4, 3, 1)))
    x = torch.randn(8, 3, 6, 6) * 0.1
    inner = [
        torch.nn.functional.conv2d(x, g.state_dict()["0.weight"], g.state_dict()["0.bias"]).amax()
        for g in (before, graph)
    ]
    assert inner[1] < inner[0] / 2
    assert names(graph) == ["conv2d", "relu", "conv2d"]

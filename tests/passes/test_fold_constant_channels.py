"""Dead channels move into the biases behind them, and what only looks dead does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, apply, assert_close, capture, check, names
from torch import Tensor, nn

from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels

FOLD = FoldConstantChannels()
EXACT = 1e-5


def dead(layer: nn.Module, *channels: int, weight: float = 0.0) -> nn.Module:
    """The layer with these output channels constant, at a bias of 0.7, -0.4, 0.7, ..."""
    with torch.no_grad():
        for number, channel in enumerate(channels):
            layer.weight[channel] = weight  # type: ignore[index, operator]
            if layer.bias is not None:
                layer.bias[channel] = -0.4 if number % 2 else 0.7  # type: ignore[index, operator]
    return layer


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.Hardtanh(-0.2, 0.5),
                                        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)])  # fmt: skip
def test_a_dead_channels_value_moves_through_the_activation(activation: nn.Module) -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 1, 4), activation, nn.Conv2d(6, 4, 1))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1, tolerance=EXACT)
    weight, bias = graph.state_dict()["2.weight"], graph.state_dict()["0.bias"]
    assert not weight[:, [1, 4]].any()
    assert weight[:, [0, 2, 3, 5]].all()
    assert not bias[[1, 4]].any()


def test_weights_too_small_to_matter_count_as_dead() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 1, weight=1e-20), nn.ReLU(), nn.Conv2d(6, 4, 1))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1, tolerance=EXACT)
    assert not graph.state_dict()["0.weight"][1].any()


def test_small_weights_that_matter_stay() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 1, weight=1e-4), nn.ReLU(), nn.Conv2d(6, 4, 1))
    check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=0)


def test_a_zero_border_is_respected() -> None:
    """Inside a padded convolution sees the constant, at its border zeros: the weights have to stay."""
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=0, tolerance=EXACT)
    assert float(graph.state_dict()["0.bias"][1]) == pytest.approx(0.7)


def test_a_channel_dead_behind_relu_folds_across_a_zero_border() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 0, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1, tolerance=EXACT)
    weight = graph.state_dict()["2.weight"]
    assert weight[:, 0].any()  # the constant 0.7
    assert not weight[:, 1].any()  # relu(-0.4) = 0


def test_a_constant_makes_channels_behind_it_constant() -> None:
    model = nn.Sequential(
        dead(nn.Conv2d(3, 4, 1), 2), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    )
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, tolerance=EXACT)
    assert not graph.state_dict()["4.weight"][:, 2].any()


@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_readers(groups: int) -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 1, 4), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=groups))
    check(model, torch.randn(2, 3, 8, 8), by=FOLD, tolerance=EXACT)


def test_several_readers_all_take_the_constant() -> None:
    model = Model(
        lambda m, x: (lambda y: m.b(y) + m.c(y))(m.a(x).relu()),
        a=dead(nn.Conv2d(3, 6, 3), 1), b=nn.Conv2d(6, 4, 3), c=nn.Conv2d(6, 4, 3, bias=False),
    )  # fmt: skip
    graph = check(model, torch.randn(2, 3, 8, 8), by=FOLD, changes=1, tolerance=EXACT)
    assert not graph.state_dict()["a.bias"][1]


def test_a_bias_that_one_padded_reader_needs_stays() -> None:
    model = Model(
        lambda m, x: (lambda y: m.b(y) + m.c(y))(m.a(x).relu()),
        a=dead(nn.Conv2d(3, 6, 3), 1), b=nn.Conv2d(6, 4, 1), c=nn.Conv2d(6, 4, 3, padding=1),
    )  # fmt: skip
    graph = check(model, torch.randn(2, 3, 8, 8), by=FOLD, tolerance=EXACT)
    assert float(graph.state_dict()["a.bias"][1]) == pytest.approx(0.7)


OTHERS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "a sum": lambda m, x: (lambda y: m.b(y) + y[:, :4].sum())(m.a(x)),
    "the output": lambda m, x: (lambda y: (m.b(y), y))(m.a(x)),
    "sigmoid": lambda m, x: m.b(m.a(x).sigmoid()),
    "average pooling that pads": lambda m, x: m.b(F.avg_pool2d(m.a(x), 3, 1, 1)),
    "zero padding": lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_readers_still_see_the_constant(name: str) -> None:
    model = Model(OTHERS[name], a=dead(nn.Conv2d(3, 6, 1), 1), b=nn.Conv2d(6, 4, 1))
    check(model, torch.randn(2, 3, 6, 6), by=FOLD, tolerance=EXACT)


def test_a_weight_used_as_the_data_of_its_reader_too() -> None:
    model = Model(
        lambda m, x: m.b(m.a(x)) + m.b(x.repeat(1, 2, 1, 1)), a=dead(nn.Conv2d(3, 6, 1), 1), b=nn.Conv2d(6, 4, 1)
    )
    check(model, torch.randn(2, 3, 6, 6), by=FOLD, tolerance=EXACT)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(bias: bool) -> None:
    model = nn.Sequential(dead(nn.Linear(4, 6, bias=bias), 1), nn.ReLU(), nn.Linear(6, 3))
    check(model, torch.randn(5, 4), by=FOLD, tolerance=EXACT)


def test_a_layer_whose_channels_are_all_dead() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 4, 3), 0, 1, 2, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    check(model, torch.randn(2, 3, 6, 6), by=FOLD, tolerance=EXACT)


@pytest.mark.thorough
def test_a_channel_that_training_killed() -> None:
    """A variance of 1e-35 behind weights of 1e-20: what weight decay leaves of a channel nobody needs."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU6(),
        nn.Conv2d(6, 3, 1),
    )
    with torch.no_grad():
        model[0].weight[[0, 3]] *= 1e-20  # type: ignore[index, operator]
        model[1].running_var[[0, 3]] = 1e-35  # type: ignore[index]
        model[1].running_mean[[0, 3]] = 1e-21  # type: ignore[index]
        model[1].bias.uniform_(-0.5, 0.5)  # type: ignore[operator]
    graph = check(model, torch.randn(2, 3, 10, 10), by=[FoldBatchNorm(), FOLD], tolerance=EXACT)
    assert not graph.state_dict()["0.weight"][[0, 3]].any()


def test_leaky_relu_at_its_default_slope() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 0, 1), nn.LeakyReLU(), nn.Conv2d(6, 4, 1))
    check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1, tolerance=EXACT)


def test_dropout_that_is_on_keeps_the_constant_to_itself() -> None:
    model = nn.Sequential(dead(nn.Conv2d(3, 6, 3), 0), nn.Dropout(0.5), nn.Conv2d(6, 4, 1))
    x = torch.randn(2, 3, 6, 6)
    graph = capture(model, x)
    apply(FOLD, graph)
    assert_close(graph(x), model(x), EXACT)
    assert names(graph) == ["conv2d", "dropout", "conv2d"]

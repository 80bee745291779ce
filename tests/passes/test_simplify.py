"""Each rule of `Simplify`: what it writes, and when it must keep its hands off."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, capture, check, names
from torch import Tensor, nn

from graphopt.ir.passes import Pass
from graphopt.passes.cleanup import FoldBatchNorm, FoldConstantChannels
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization import EqualizeChannels
from graphopt.passmanager.runner import run

SIMPLIFY = Simplify()
Forward = Callable[[nn.Module, Tensor], object]


def simplified(body: Forward, *shape: int, changes: int | None = None, **parts: nn.Module) -> list[str]:
    return names(check(Model(body, **parts), torch.randn(*(shape or (2, 4, 6, 6))), by=SIMPLIFY, changes=changes))


# ---- Identities -----------------------------------------------------------------------------------------------------

NOTHING: dict[str, Forward] = {
    "dropout": lambda m, x: F.dropout(x, 0.5, False),
    "feature dropout": lambda m, x: F.dropout2d(x, 0.5, False),
    "clone": lambda m, x: x.clone(),
    "contiguous": lambda m, x: x.contiguous(),
    "a cast to its own type": lambda m, x: x.to(torch.float32),
    "a view of its own shape": lambda m, x: x.reshape(x.shape[0], 4, 6, 6),
    "an identity permutation": lambda m, x: x.permute(0, 1, 2, 3),
    "padding by nothing": lambda m, x: F.pad(x, (0, 0, 0, 0)),
    "a whole slice": lambda m, x: x[:, 0:4],
    "expansion to its own size": lambda m, x: x.expand(-1, 4, 6, 6),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_goes(name: str) -> None:
    assert simplified(lambda m, x: NOTHING[name](m, x.relu()).sigmoid()) == ["relu", "sigmoid"]


SOMETHING: dict[str, Forward] = {
    "a cast": lambda m, x: x.to(torch.float64),
    "a true reshape": lambda m, x: x.reshape(-1, 6, 4, 6),
    "a permutation": lambda m, x: x.permute(0, 2, 1, 3),
    "a transposition of equal sizes": lambda m, x: x.transpose(2, 3),
    "a permutation of equal sizes": lambda m, x: x.permute(0, 1, 3, 2),
    "a flip": lambda m, x: x.flip(1),
    "a roll": lambda m, x: x.roll(1, 2),
    "padding": lambda m, x: F.pad(x, (1, 1)),
    "padding that crops and pads": lambda m, x: F.pad(x, (1, -1)),
    "padding with a value": lambda m, x: F.pad(x, (1, 0), value=2.0),
    "a partial slice": lambda m, x: x[:, 1:],
    "an index of another order": lambda m, x: x.index_select(1, torch.tensor([2, 0, 3, 1])),
    "a channel shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "dropout that is always on": lambda m, x: F.dropout(x, 0.5, True),
}


@pytest.mark.parametrize("name", SOMETHING)
def test_what_changes_something_stays(name: str) -> None:
    graph = capture(Model(lambda m, x: SOMETHING[name](m, x.relu()).sigmoid()), torch.randn(2, 4, 6, 6))
    text = str(graph)
    assert SIMPLIFY(graph) == []
    assert str(graph) == text


def test_dropout_in_training_mode_stays() -> None:
    graph = capture(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), torch.randn(2, 4)).train()
    assert SIMPLIFY(graph) == []


def test_an_identity_that_is_the_whole_model_leaves_the_input() -> None:
    assert simplified(lambda m, x: x.contiguous()) == []


# ---- Constants ------------------------------------------------------------------------------------------------------


def test_a_normalised_weight_is_computed_once_and_stays_trainable() -> None:
    model = Model(lambda m, x: F.linear(x, m.fc.weight / m.fc.weight.norm(), m.fc.bias), fc=nn.Linear(4, 3))
    graph = check(model, torch.randn(2, 4), by=SIMPLIFY)
    assert names(graph) == ["linear"]
    assert len(list(graph.parameters())) == 2


def test_weight_standardisation_leaves_a_plain_convolution() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.conv.weight
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (deviation + 1e-5), m.conv.bias)

    assert simplified(body, conv=nn.Conv2d(4, 8, 3)) == ["conv2d"]


def test_a_constant_that_would_grow_is_left_to_be_computed() -> None:
    assert "expand" in simplified(lambda m, x: x + m.fc.weight.view(-1)[:1].expand(4096), 2, 4096, fc=nn.Linear(1, 1))


def test_random_numbers_are_not_frozen() -> None:
    model = Model(lambda m, x: x + torch.bernoulli(m.fc.weight.sigmoid()), fc=nn.Linear(3, 3))
    graph = capture(model, torch.randn(3, 3))
    SIMPLIFY(graph)
    assert any("bernoulli" in name for name in names(graph))


# ---- Global pooling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda m, x: x.mean((2, 3)), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean((-1, -2)), ["adaptive_avg_pool2d", "flatten"]),
        (lambda m, x: x.mean((2, 3), keepdim=True), ["adaptive_avg_pool2d"]),
        (lambda m, x: F.avg_pool2d(x, 6), ["adaptive_avg_pool2d"]),
    ],
)
def test_a_mean_over_the_image_becomes_global_pooling(body: Forward, expected: list[str]) -> None:
    assert simplified(body, changes=1) == expected


def test_a_mean_over_a_sequence_becomes_global_pooling() -> None:
    assert simplified(lambda m, x: x.mean(2), 2, 4, 6, changes=1) == ["adaptive_avg_pool1d", "flatten"]


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.mean((1, 2)),
        lambda m, x: x.mean(1),
        lambda m, x: x.mean(3),
        lambda m, x: x.mean((1, 2, 3)),
        lambda m, x: x.mean(),
        lambda m, x: x.mean((2, 3), dtype=torch.float64),
        lambda m, x: F.avg_pool2d(x, 3),
        lambda m, x: F.avg_pool2d(x, (6, 3)),
        lambda m, x: F.avg_pool2d(x, 6, padding=1, stride=6),
    ],
)
def test_any_other_mean_stays(body: Forward) -> None:
    assert "adaptive" not in " ".join(simplified(body, changes=0))


@pytest.mark.parametrize("sizes", [2, (3, 1), (2, 6)])
def test_adaptive_pooling_to_sizes_that_divide_the_image_has_windows(sizes: int | tuple[int, int]) -> None:
    assert simplified(lambda m, x: F.adaptive_avg_pool2d(x, sizes), changes=1) == ["avg_pool2d"]
    assert simplified(lambda m, x: F.adaptive_avg_pool1d(x, 3), 2, 4, 6, changes=1) == ["avg_pool1d"]


def test_adaptive_pooling_to_other_sizes_stays() -> None:
    assert simplified(lambda m, x: F.adaptive_avg_pool2d(x, (3, 4)), changes=0) == ["adaptive_avg_pool2d"]


def test_pooling_with_a_divisor_of_its_own_is_no_mean() -> None:
    assert "adaptive" not in " ".join(simplified(lambda m, x: F.avg_pool2d(x, 6, divisor_override=7), changes=0))


# ---- Hard sigmoid ---------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, Forward] = {
    "relu6 of a sum over six": lambda m, x: F.relu6(x + 3) / 6,
    "relu6 times a sixth": lambda m, x: F.relu6(x + 3.0) * (1 / 6),
    "clamp": lambda m, x: (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda m, x: F.hardtanh(x + 3, 0.0, 6.0) / 6.0,
    "the sum turned round": lambda m, x: F.relu6(3 + x) / 6,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_hard_sigmoid_is_recognised(name: str) -> None:
    assert simplified(SPELLINGS[name]) == ["hardsigmoid"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_hard_swish_by_hand_becomes_a_product_with_hard_sigmoid(name: str) -> None:
    assert simplified(lambda m, x: x * SPELLINGS[name](m, x)) == ["hardsigmoid", "mul"]


def test_hard_swish_divided_at_the_end_computes_the_same() -> None:
    simplified(lambda m, x: x * F.relu6(x + 3) / 6)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: F.relu6(x + 2) / 6,
        lambda m, x: F.relu6(x + 3) / 5,
        lambda m, x: F.relu6(x + 3) * 6,
        lambda m, x: (x + 3).clamp(0, 5) / 6,
        lambda m, x: (x + 3).clamp(1, 6) / 6,
        lambda m, x: F.relu6(x * 3) / 6,
        lambda m, x: torch.add(x, 3, alpha=2).clamp(0, 6) / 6,
    ],
)
def test_what_only_resembles_hard_sigmoid_stays(body: Forward) -> None:
    assert "hardsigmoid" not in simplified(body)


def test_the_clipped_sum_stays_for_its_other_readers() -> None:
    assert simplified(lambda m, x: (lambda y: (y / 6, y.sin()))(F.relu6(x + 3))) == [
        "add",
        "relu6",
        "hardsigmoid",
        "sin",
    ]


# ---- Scalars --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda m, x: x - 2, ["add"]),
        (lambda m, x: x - 0.5, ["add"]),
        (lambda m, x: x / 4, ["mul"]),
        (lambda m, x: x / -3, ["mul"]),
    ],
)
def test_scalars_are_added_and_multiplied(body: Forward, expected: list[str]) -> None:
    assert simplified(body, changes=1) == expected


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: 2 - x,
        lambda m, x: 2 / x,
        lambda m, x: torch.sub(x, 2, alpha=3),
        lambda m, x: torch.div(x, 3, rounding_mode="floor"),
        lambda m, x: x - x.sigmoid(),
    ],
)
def test_what_is_no_scalar_on_the_right_computes_the_same(body: Forward) -> None:
    simplified(body)


def test_integers_keep_their_division() -> None:
    model = Model(lambda m, x: (x / 2, x - 1))
    graph = check(model, torch.arange(8).reshape(2, 4), by=SIMPLIFY)
    assert "div" in names(graph)


def test_a_division_by_zero_stays_one() -> None:
    graph = capture(Model(lambda m, x: x / 0), torch.randn(2, 3))
    assert SIMPLIFY(graph) == []


def test_normalisation_of_images_reads_as_one_sum_and_one_product() -> None:
    graph = check(Model(lambda m, x: (x - 0.5) / 0.25), torch.randn(2, 3, 4, 4), by=SIMPLIFY, changes=2)
    assert str(graph) == dedent("""\
        graph(inputs_0: f32[N, 3, 4, 4])
          %0 = add(inputs_0, other=-0.5) : f32[N, 3, 4, 4]  # add_tensor
          %1 = mul(%0, other=4.0) : f32[N, 3, 4, 4]  # mul_tensor
          return %1""")


class Scalars(nn.Module):
    """Calls that go along a dimension of a value that has none, as torch allows; beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        low = x.min()
        along = [
            low.mean(-1, keepdim=True),
            low.softmax(-1),
            low.sum(0),
            low.cumsum(0),
            low.logsumexp(-1),
            low.sort(-1)[0],
        ]
        return [self.second(self.first(x)), *(low - value for value in along)]


@pytest.mark.parametrize("transform", [Simplify(), FoldBatchNorm(), FoldConstantChannels(), EqualizeChannels()])
def test_dimensions_of_scalars_are_no_riddle(transform: Pass) -> None:
    graph = capture(Scalars(), torch.randn(2, 2, 5))
    run([transform], graph)

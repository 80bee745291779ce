"""Ranks of every factorization: numbers, shares, rules, and those that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from factorizations import APPLIES, C2, METHODS, captured, dropped, label, layer_in, lost, outer, pairs, weight_of
from rewriting import apply, capture
from torch import Tensor, nn

from graphopt.passes.factorization import (
    CP,
    EVBMF,
    SVD,
    BlockTerm,
    ChannelWise,
    DepthwiseSeparable,
    Energy,
    Separable,
    StackedKernels,
    TensorTrain,
    Tucker,
)
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.method import Method, Ranks


def ranks_of(method: Method, name: str, rank: Any, **options: Any) -> Ranks | None:
    layer = layer_in(captured(name)[2])
    return replace(method, rank=rank, **options).choose("0", layer, weight_of(name), rank)


def test_a_number_is_each_rank_and_a_tuple_names_them() -> None:
    assert ranks_of(Tucker(), "conv2d", 3) == (3, 3)
    assert ranks_of(Tucker(), "conv2d", 6) == (5, 6)  # no more than the full ones
    assert ranks_of(Tucker(), "conv2d", (2, 5)) == (2, 5)
    assert ranks_of(TensorTrain(modes=3), "linear", 4) == (4, 4)
    assert ranks_of(StackedKernels(), "conv2d 7", (5, 7)) == (5, 7)


@pytest.mark.parametrize(("method", "name"), pairs())
def test_a_share_is_kept_to(method: Method, name: str) -> None:
    layer = layer_in(captured(name)[2])
    whole = Chain.whole(layer).macs(layer)
    for share in (0.4, 0.9):
        ranks = method.at_share(layer, share)
        if ranks is None:
            one = tuple(1 for _ in method.full(layer))
            assert method.skeleton(layer, one).macs(layer) > share * whole
        else:
            assert method.skeleton(layer, ranks).macs(layer) <= share * whole


def test_ranks_are_rounded_where_they_are_not_named() -> None:
    layer = layer_in(capture(C2(32, 32, 3, bias=False), torch.randn(1, 32, 8, 8)))
    for method in (Tucker(round_to=8), CP(round_to=8), ChannelWise(round_to=8), StackedKernels(round_to=8)):
        if method.refuses(layer) is None:
            found = method.choose("conv", layer, torch.randn(32, 32, 3, 3), 0.6)
            assert found is not None
            assert all(r % 8 == 0 for r in found)
            assert method.choose("conv", layer, torch.randn(32, 32, 3, 3), 5) == (5,) * len(found)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_energy_keeps_its_share_with_the_fewest(method: Method) -> None:
    name = "linear" if "linear" in APPLIES[type(method)] else "conv2d reflect"
    layer, weight, share = layer_in(captured(name)[2]), weight_of(name), 0.6
    ranks = method.by_rule(layer, weight, Energy(share))
    energy = float(weight.square().sum())
    if len(ranks) == 1:
        assert 1 - lost(method, name, ranks) / energy >= share - 1e-9
        assert ranks == (1,) or 1 - lost(method, name, (ranks[0] - 1,)) / energy < share
    else:
        for matrix, rank in zip(method.unfoldings(weight) or [weight.flatten(1)], ranks, strict=False):
            assert dropped(matrix, rank) <= (1 - share) * float(matrix.square().sum()) + 1e-9


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("sizes", [(40, 60), (100, 30), (64, 64)])
def test_evbmf_finds_the_rank_under_noise(rank: int, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(size, rank, generator=generator) for size in sizes)
    noise = torch.randn(sizes, generator=generator)
    assert EVBMF()(left @ right.T + 0.3 * noise) == rank
    assert EVBMF()(100 * (left @ right.T + 0.3 * noise).T) == rank
    assert EVBMF()(noise) == 1
    assert EVBMF()(torch.zeros(sizes)) == 1


def test_evbmf_chooses_ranks_of_every_method_that_has_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, 2, generator=generator).double() for size in (40, 30, 3, 3)]
    weight = outer(*factors) + 0.05 * torch.randn(40, 30, 3, 3, generator=generator).double()
    layer = layer_in(capture(C2(30, 40, 3, bias=False), torch.randn(1, 30, 8, 8)))
    for method in (ChannelWise(), Separable(), CP()):
        assert method.choose("conv", layer, weight, EVBMF()) == (2,)
    assert Tucker().choose("conv", layer, weight, EVBMF()) == (2, 2)
    assert DepthwiseSeparable().choose("conv", layer, weight, EVBMF()) == (2,)
    wide = layer_in(capture(nn.Linear(64, 64), torch.randn(1, 64)))
    matrix = outer(*(torch.randn(8, 2, generator=generator).double() for _ in range(4)))  # [O1, O2, I1, I2]
    matrix = (matrix + 0.01 * torch.randn(8, 8, 8, 8, generator=generator)).reshape(64, 64)
    assert TensorTrain().choose("fc", wide, matrix, EVBMF()) == (2,)
    assert BlockTerm(modes=2).choose("fc", wide, matrix, EVBMF()) == (1,)  # two terms of rank one
    with pytest.raises(ValueError, match=r"StackedKernels has ranks of no matrix, which EVBMF needs; give numbers"):
        StackedKernels().choose("conv", layer_in(captured("conv2d 7")[2]), weight_of("conv2d 7"), EVBMF())


def two_convs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        C2(3, 16, 5, padding=2), nn.ReLU(), C2(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8)
    ), (torch.randn(4, 3, 6, 6))


def test_patterns_give_layers_ranks_of_their_own() -> None:
    model, x = two_convs()
    graph = capture(model, x)
    assert [c.site for c in apply(Tucker(0.5, layers={"2": None}), graph)] == ["0"]
    graph = capture(model, x)
    changes = apply(ChannelWise(0.5, layers={"2.weight": 3, "*": None}), graph)
    assert [c.site for c in changes] == ["2"]
    assert dict(graph.named_parameters())["2.0.weight"].shape == (3, 16, 3, 3)


WRONG: list[tuple[Callable[[], Method], str]] = [
    (lambda: Tucker(0), r"rank must be at least 1, got 0"),
    (lambda: CP(-3), r"rank must be at least 1, got -3"),
    (lambda: CP(1.5), r"rank must be a whole number, or a share .* over 0 and under 1, got 1.5"),
    (lambda: SVD(True), r"rank must be a whole number, .* got True"),
    (lambda: SVD("8"), r"rank must be a whole number, .* got '8'"),  # type: ignore[arg-type]
    (lambda: Tucker((4, 0)), r"rank must be at least 1, got \(4, 0\)"),
    (lambda: Tucker(layers={"2": 2.0}), r"layers\['2'\] must be a whole number"),
    (lambda: CP(round_to=0), r"round_to must be a whole number of at least 1"),
    (lambda: BlockTerm(terms=0), r"terms must be a whole number of at least 1"),
    (lambda: TensorTrain(modes=1), r"modes must be a number of at least 2, or as many factors"),
    (lambda: TensorTrain(modes=((2, 3), (4,))), r"modes must be a number of at least 2, or as many factors"),
    (lambda: BlockTerm(modes=True), r"modes must be a number of at least 2"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_options_that_do_not_fit_are_named(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


REFUSED: list[tuple[Method, str]] = [
    (Tucker((4, 17), layers={"0": None}), r"2: rank \(4, 17\) is above the full rank \(16, 16\)"),
    (CP(9999, layers={"0": None}), r"2: rank 9999 is above the full rank 144"),
    (Tucker((4, 4, 4)), r"0: Tucker has 2 ranks, got \(4, 4, 4\)"),
    (Tucker(layers={"head": 4}), r"layers: no layer matches 'head'"),
    (SVD(layers={"0": 4}), r"SVD does not apply to 0: its kernel is 5x5, and a plain SVD takes linear layers"),
    (CP(layers={"5": 4}), r"CP does not apply to 5: it has no kernel larger than 1; see SVD"),
    (DepthwiseSeparable(layers={"5": 1}), r"does not apply to 5: it has no kernel larger than 1"),
    (StackedKernels(layers={"2": 4}), r"does not apply to 2: its kernel is 3x3, and only one of at least 5"),
    (StackedKernels(layers={"5": 4}), r"does not apply to 5: its kernel is none"),
    (TensorTrain(layers={"2": 4}), r"TensorTrain does not apply to 2: it is a convolution"),
    (TensorTrain(layers={"5": 4}, modes=((4, 4), (2, 4))), r"its 256 inputs and 8 outputs have other factors than"),
]


@pytest.mark.parametrize(("method", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_layers_that_do_not_fit_are_named(method: Method, message: str) -> None:
    model, x = two_convs()
    graph = capture(model, x)
    text = str(graph)
    with pytest.raises(ValueError, match=message):
        method(graph)
    assert str(graph) == text


def test_kernels_that_nothing_can_be_done_with_are_refused() -> None:
    depthwise = layer_in(capture(C2(4, 8, 3, groups=4), torch.randn(1, 4, 8, 8)))
    assert DepthwiseSeparable().refuses(depthwise) == "it is a depthwise convolution already"
    even = layer_in(capture(C2(4, 8, 6), torch.randn(1, 4, 8, 8)))
    assert "only odd sizes" in str(StackedKernels().refuses(even))
    prime = layer_in(capture(nn.Linear(1, 7), torch.randn(2, 1)))
    assert TensorTrain().refuses(prime) == "its 1 inputs and 7 outputs have no factors"

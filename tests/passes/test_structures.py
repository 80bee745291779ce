"""Pruning, factorization and removal of blocks in networks as people write them: layers right behind each other, without bias,
packed, of constants, parametrized, frozen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images
from rewriting import Model, assert_close, capture, randomised
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from graphopt.analysis.channels.groups import groups
from graphopt.analysis.moments import input_moments
from graphopt.execution.streaming import Frontier
from graphopt.ir import cost
from graphopt.ir.constants import fold_weights
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup import FoldBatchNorm, FoldConstantChannels, Simplify
from graphopt.passes.equalization import AbsorbHighBias, EqualizeChannels
from graphopt.passes.factorization import SVD, ChannelWise, Factorize, Tucker
from graphopt.passes.pruning import Lasso, Prune, Reconstruction, RemoveBlocks, ThiNet

DATA = [[images(16)]]
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
QUICK = [SVD(), ChannelWise()]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


# ---- Layers right behind each other ---------------------------------------------------------------------------------


def shared() -> nn.Module:
    layers = {"first": nn.Linear(16, 32), "inner": nn.Linear(32, 32), "last": nn.Linear(32, 8)}
    return Model(lambda m, x: m.last(m.inner(m.inner(m.first(x)))), **layers)


BEHIND: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "1d": (lambda: nn.Sequential(nn.Conv1d(4, 32, 3), nn.Conv1d(32, 32, 3), nn.Conv1d(32, 32, 1)), torch.randn(8, 4, 20)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(2, 16, 1), nn.Conv3d(16, 16, 1), nn.Conv3d(16, 16, 1)), torch.randn(2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 24, 3), nn.ConvTranspose2d(24, 24, 3)), torch.randn(4, 4, 6, 6)),
    "groups": (lambda: nn.Sequential(conv(4, 32), nn.Conv2d(32, 32, 3, groups=2), conv(32, 32)), torch.randn(4, 4, 8, 8)),
    "shared": (shared, torch.randn(16, 16)),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("name", BEHIND)
def test_layers_right_behind_each_other_are_factorized_and_once_more(name: str, with_data: bool) -> None:
    torch.manual_seed(0)
    make, x = BEHIND[name]
    graph = capture(make().eval(), x)
    for _ in range(2):
        before = cost.macs(graph)
        Factorize(target_macs=0.7, methods=QUICK, data=[[x]] if with_data else None)(graph)
        assert cost.macs(graph) <= 0.71 * before


def test_narrow_layers_have_ranks_below_the_multiple_that_kernels_like() -> None:
    torch.manual_seed(0)
    graph = capture(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16)).eval(), images(2))
    before = cost.macs(graph)
    Factorize(target_macs=0.6, methods=[Tucker()], round_to=16)(graph)
    assert cost.macs(graph) <= 0.6 * before


# ---- Means without data ---------------------------------------------------------------------------------------------


def normed(dims: int) -> nn.Module:
    layer, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
    inner = layer(16, 16, 3, bias=False)
    return randomised(nn.Sequential(layer(3, 16, 3), norm(16), nn.GELU(), inner, nn.ReLU(), layer(16, 4, 1)))


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_readers_without_bias_get_the_mean_of_what_they_lose(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, *[9] * dims)
    graph = capture(normed(dims), x)
    plain, moved = graph.clone(), graph.clone()
    Prune(0.7, compensate="none")(plain)
    Prune(0.7)(moved)
    error = lambda g: float((g(x) - graph(x)).square().mean())  # noqa: E731
    assert error(moved) < error(plain)
    assert Layer.of(moved.calls(*{n.target for n in moved.calls() if Layer.of(n)})[1]).bias is not None  # type: ignore[union-attr]


# ---- Parts of one layer ---------------------------------------------------------------------------------------------


def halves() -> nn.Module:
    """One layer, whose two parts go different ways."""

    def body(m: Any, x: Tensor) -> Tensor:
        one, two = m.first(x).relu().split([4, 20], 1)
        return m.head((m.a(one) + m.b(two)).relu())  # type: ignore[no-any-return]

    return Model(body, first=conv(3, 24), a=conv(4, 8), b=conv(20, 8), head=nn.Sequential(*head(8)))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options", [{"data": DATA}, {}, {"scope": "global"}, {"data": DATA, "criterion": ThiNet(DATA)}], ids=str
)
def test_of_every_part_of_a_layer_one_channel_is_left(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = halves()
    with torch.no_grad():
        model.get_submodule("first").weight[:4] *= 1e-3  # type: ignore[operator]
    graph = capture(model, images(2))
    Prune(0.3, layers={"a": None}, **options)(graph)
    assert graph.module.get_submodule("a").weight.shape[1] >= 1  # type: ignore[operator,union-attr]
    assert graph(images(3)).shape == (3, 5)


def packed(width: int = 32, heads: int = 4) -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.embed(x)
        n, length, _ = y.shape
        q, k, v = (t.view(n, length, heads, -1).transpose(1, 2) for t in m.qkv(y).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        return m.head((y + m.project(attended)).mean(1))  # type: ignore[no-any-return]

    layers = {"embed": nn.Linear(12, width), "qkv": nn.Linear(width, 3 * width), "project": nn.Linear(width, width)}
    return Model(body, head=nn.Linear(width, 5), **layers)


@pytest.mark.thorough
@pytest.mark.parametrize("criterion", [Reconstruction, ThiNet, Lasso])
def test_positions_of_queries_and_keys_cannot_be_judged_by_readers(criterion: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 7, 12)
    graph = capture(packed(), x)
    positions = next(g for g in groups(graph) if g.name == "qkv" and g.kind == "columns")
    scores = criterion([[x]]).prepare(graph, [positions])(graph, positions)
    assert int(torch.isinf(scores).sum()) >= 8  # those of queries and keys; of the others one has to be left
    assert int(torch.isfinite(scores).sum()) >= 7


@pytest.mark.thorough
def test_units_that_make_up_a_dimension_keep_one_of_them() -> None:
    graph = capture(packed(), torch.randn(2, 7, 12))
    positions = next(g for g in groups(graph) if g.name == "qkv" and g.kind == "columns")
    kept = set(range(16)) - set(positions.removable(range(16)))
    assert kept == {7, 15}


# ---- Layers of constants --------------------------------------------------------------------------------------------


def positions() -> nn.Module:
    """A layer, and one behind it, that read a constant."""

    def body(m: Any, x: Tensor) -> Tensor:
        return m.head((m.first(x) + m.place(m.table(m.at).relu())).relu())  # type: ignore[no-any-return]

    layers = {
        "table": nn.Linear(7, 32),
        "place": nn.Linear(32, 16),
        "first": nn.Linear(12, 16),
        "head": nn.Linear(16, 5),
    }
    model = Model(body, **layers)
    model.register_buffer("at", torch.randn(6, 7))
    return model


def test_constants_are_watched_like_any_value() -> None:
    graph = capture(positions(), torch.randn(4, 6, 12))
    layer = next(layer for node in graph.calls() if (layer := Layer.of(node)) and graph.is_constant(layer.input))
    ((_, moments),) = input_moments(graph, [layer], [[torch.randn(4, 6, 12)]] * 2)
    assert_close(moments.mean_x[0].float(), graph.tensor(layer.input).mean(0))
    (found,) = Frontier(graph, [[torch.randn(4, 6, 12)]]).before(layer.node, [layer.input])
    assert torch.equal(found[0], graph.tensor(layer.input))


@pytest.mark.parametrize(
    "make", [lambda d: Prune(0.7, data=d), lambda d: Factorize(target_macs=0.7, data=d), lambda d: SVD(0.6, data=d)]
)
def test_layers_of_constants_are_compressed_with_the_rest(make: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 6, 12)
    graph = capture(positions(), x)
    before = cost.macs(graph)
    assert make([[x]])(graph)
    assert cost.macs(graph) < 0.8 * before


# ---- Parametrized weights -------------------------------------------------------------------------------------------

COMPRESS = [
    Prune(0.7),
    Prune(0.7, data=DATA),
    Factorize(target_macs=0.7, methods=QUICK),
    Factorize(target_macs=0.7, methods=QUICK, data=DATA),
    SVD(0.6),
]


@pytest.mark.parametrize("parametrized", [weight_norm, spectral_norm])
@pytest.mark.parametrize("transform", COMPRESS, ids=str)
def test_parametrized_weights_are_constants_to_what_cuts_them(transform: Any, parametrized: Any) -> None:
    torch.manual_seed(0)
    layers = [parametrized(nn.Conv2d(i, o, k)) for i, o, k in ((3, 16, 3), (16, 32, 1), (32, 32, 1))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), *head(32)).eval()
    graph = capture(model, images(2))
    folded = graph.clone()
    fold_weights(folded)
    assert_close(folded(images(4)), model(images(4)))
    assert "2.weight" in dict(folded.named_parameters())
    before = cost.macs(graph)
    assert transform(graph)
    assert cost.macs(graph) < 0.85 * before


@pytest.mark.thorough
def test_a_parametrized_layer_that_runs_twice_keeps_one_weight() -> None:
    model = Model(
        lambda m, x: m.head(m.inner(m.inner(x).relu()).relu()), inner=weight_norm(nn.Linear(8, 8)), head=nn.Linear(8, 5)
    )
    graph = capture(model, torch.randn(2, 8))
    fold_weights(graph)
    first, second, _ = [layer.weight for node in graph.calls() if (layer := Layer.of(node))]
    assert first is second
    assert graph.is_constant(first)


# ---- Frozen weights -------------------------------------------------------------------------------------------------

FROZEN: list[Any] = [
    Prune(0.7), Prune(0.7, data=DATA),
    Factorize(target_macs=0.7, methods=QUICK), Factorize(target_macs=0.7, methods=QUICK, data=DATA),
    RemoveBlocks(0.8, DATA), FoldBatchNorm(), FoldConstantChannels(), EqualizeChannels(), AbsorbHighBias(), Simplify(),
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("transform", FROZEN, ids=lambda t: str(t)[:40])
def test_what_is_made_of_frozen_weights_is_frozen_and_the_rest_trains(transform: Any) -> None:
    torch.manual_seed(0)

    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.stem(x)))
        for block in (m.one, m.two):
            y = F.relu(y + block(y))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    def block() -> nn.Module:
        return nn.Sequential(
            weight_norm(nn.Conv2d(16, 16, 3, padding=1, bias=False)), nn.BatchNorm2d(16), nn.PReLU(16), conv(16, 16)
        )

    model = randomised(
        Model(body, stem=conv(3, 16), norm=nn.BatchNorm2d(16), one=block(), two=block(), head=nn.Linear(16, 5))
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    graph = capture(model, images(2))
    transform(graph)
    graph.sweep()
    assert {name.split(".")[0] for name, p in graph.named_parameters() if p.requires_grad} == {"head"}
    moving = [name for name, _ in graph.named_buffers() if name.endswith(("weight", "bias"))]
    assert not moving


# ---- Blocks ---------------------------------------------------------------------------------------------------------


def denoiser(skips: bool) -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        for name in ("one", "two", "three"):
            y = (getattr(m, name)(y) + (y if skips else 0)).relu()
        return x + 0.1 * m.last(y)  # type: ignore[no-any-return]

    return Model(body, first=conv(3, 12), last=conv(12, 3), **{name: conv(12, 12) for name in ("one", "two", "three")})


def test_the_network_itself_is_no_block() -> None:
    graph = capture(denoiser(skips=False), images(2))
    with pytest.raises(ValueError, match="any branch but those that hold nearly all of what is left"):
        RemoveBlocks(0.7, DATA)(graph)


@pytest.mark.parametrize("keep", [0.8, 0.5])
def test_blocks_inside_a_branch_go_before_the_branch(keep: float) -> None:
    torch.manual_seed(0)
    graph: Graph = capture(denoiser(skips=True), images(2))
    before = cost.macs(graph)
    RemoveBlocks(keep, DATA, fit=False)(graph)
    assert 0.5 * keep * before <= cost.macs(graph) <= keep * before
    assert "first.weight" in graph.state_dict()


# ---- Channel shuffles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("spelling", [nn.ChannelShuffle(4), lambda x: F.channel_shuffle(x, 4)])
def test_shuffles_by_the_operator_are_pruned(spelling: Any, dims: int) -> None:
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layers = {"a": layer(3, 16, 1), "b": layer(16, 16, 1, groups=16), "c": layer(16, 8, 1), "d": layer(8, 4, 1)}
    x = torch.randn(4, 3, *[6] * dims)
    graph = capture(Model(lambda m, x: m.d(m.c(m.b(spelling(m.a(x))).relu()).relu()), **layers), x)
    before = cost.macs(graph)
    Prune(0.6, data=[[x]])(graph)
    assert cost.macs(graph) <= 0.61 * before
    assert graph(x).shape == (4, 4, *[6] * dims)


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_optimize_needs_less_than_four_times_the_model() -> None:
    """In a process of its own, beyond what that holds with the model loaded; layers as large as those of large networks."""
    command = [sys.executable, str(BENCHMARK), "--alone", "4096", "3", "x86"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(answer.splitlines()[-1])
    assert found["model_mb"] > 200
    assert found["growth"] < 4

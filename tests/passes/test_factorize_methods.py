"""Every factorization: exact at full rank, as near as theory says below it, and the same chain in numbers and in the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import target_of
from rewriting import Model, apply, assert_close, capture, names
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes import factorization
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
from graphopt.passes.factorization.cp import decompose as cp
from graphopt.passes.factorization.fitting import level
from graphopt.passes.factorization.method import Method, Ranks
from graphopt.passes.factorization.modes import balanced

METHODS: list[Method] = [
    SVD(), ChannelWise(), Separable(), Tucker(), CP(), DepthwiseSeparable(), StackedKernels(), TensorTrain(),
    TensorTrain(modes=3), BlockTerm(), BlockTerm(modes=2, terms=3),
    BlockTerm(modes=4, terms=1),
]  # fmt: skip
C1, C2, C3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: C1(4, 6, 5, stride=2, padding=3, dilation=2), (2, 4, 19)),
    "conv1d grouped": (lambda: C1(4, 6, 3, groups=2, bias=False), (2, 4, 9)),
    "conv2d": (lambda: C2(5, 6, 3, padding=1), (2, 5, 7, 8)),
    "conv2d strided": (lambda: C2(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), bias=False), (2, 4, 9, 8)),
    "conv2d dilated": (lambda: C2(4, 5, 3, dilation=(2, 3), padding=2), (2, 4, 11, 12)),
    "conv2d same": (lambda: C2(4, 5, (3, 4), padding="same"), (2, 4, 7, 8)),
    "conv2d reflect": (lambda: C2(4, 5, 5, padding=2, padding_mode="reflect"), (2, 4, 7, 8)),
    "conv2d grouped": (lambda: C2(8, 6, 5, groups=2, padding=2, stride=2), (2, 8, 9, 9)),
    "conv2d tall": (lambda: C2(4, 5, (3, 1), stride=2, padding=1), (2, 4, 7, 7)),
    "conv2d wide": (lambda: C2(4, 5, (1, 5), padding=1, dilation=(2, 1)), (2, 4, 7, 7)),
    "conv2d 7": (lambda: C2(3, 4, 7, padding=3, stride=3), (2, 3, 11, 10)),
    "conv2d 1": (lambda: C2(6, 8, 1, stride=2), (2, 6, 5, 5)),
    "conv3d": (lambda: C3(3, 4, (3, 5, 1), padding=(1, 2, 1), stride=(1, 2, 2)), (2, 3, 5, 6, 4)),
    "transposed 1d": (lambda: T1(4, 5, 5, stride=3, padding=2, output_padding=1), (2, 4, 5)),
    "transposed 2d": (lambda: T2(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
    "transposed 2d 5": (lambda: T2(4, 3, 5, stride=(2, 1), padding=2, dilation=2, bias=False), (2, 4, 5, 6)),
    "transposed 3d": (lambda: T3(2, 3, 3, stride=2, output_padding=1), (2, 2, 3, 3, 2)),
    "linear": (lambda: nn.Linear(12, 18), (3, 12)),
    "linear on tokens": (lambda: nn.Linear(18, 24, bias=False), (2, 5, 18)),
    "linear on a grid": (lambda: nn.Linear(16, 7), (2, 3, 5, 16)),
}
APPLIES = {
    "SVD": 4,
    "ChannelWise": 16,
    "Separable": 11,
    "Tucker": 16,
    "CP": 16,
    "DepthwiseSeparable": 16,
    "StackedKernels": 9,
}


def label(method: Method) -> str:
    options = [str(getattr(method, name)) for name in ("modes", "terms") if hasattr(method, name)]
    return " ".join([type(method).__name__, *options])


@cache
def captured(name: str) -> tuple[nn.Module, Tensor, Graph]:
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        make, sizes = LAYERS[name]
        model, x = nn.Sequential(make()).double().eval(), torch.randn(sizes).double()
    return model, x, Graph.capture(model, x)


def layer_in(graph: Graph) -> Layer:
    return next(layer for node in graph.calls() if (layer := Layer.of(node)))


def weight_of(name: str) -> Tensor:
    layer = layer_in(captured(name)[2])
    return layer.canonical(captured(name)[2].tensor(layer.weight))


def pairs() -> list[Any]:
    """Every method with every layer it applies to."""
    found = []
    for method in METHODS:
        mine = [name for name in LAYERS if method.refuses(layer_in(captured(name)[2])) is None]
        assert len(mine) == APPLIES.get(type(method).__name__, 3), (method, mine)
        found += [pytest.param(method, name, id=f"{label(method)}, {name}") for name in mine]
    return found


def low(method: Method, layer: Layer) -> Ranks:
    return tuple(max(1, full // 3) for full in method.full(layer))


@cache
def small(method: str, name: str) -> Chain:
    """A method's chain for a layer, at low ranks."""
    chosen, layer = next(m for m in METHODS if label(m) == method), layer_in(captured(name)[2])
    return chosen.decompose(layer, weight_of(name), low(chosen, layer))


@pytest.mark.parametrize(("method", "name"), pairs())
def test_it_is_exact_at_full_rank(method: Method, name: str) -> None:
    model, x, original = captured(name)
    before, graph = copy.deepcopy(model.state_dict()), original.clone()
    changes = apply(replace(method, rank=method.full(layer_in(original))), graph)
    assert [site for site, _ in changes] == ["0"]
    assert graph.dynamic_batch
    with torch.no_grad():
        for batch in (x, torch.cat([x, x.flip(0)]) * 0.7):
            assert_close(graph(batch), model(batch), 1e-9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(original) == str(captured(name)[2])


@pytest.mark.parametrize(("method", "name"), pairs())
def test_a_chain_computes_its_dense_weight_with_the_work_it_says(method: Method, name: str) -> None:
    model, x, original = captured(name)
    layer, graph = layer_in(original), original.clone()
    ranks = low(method, layer)
    chain = small(label(method), name)
    apply(replace(method, rank=ranks), graph)
    bias = {"0.bias"} if layer.bias is not None else set()
    assert dict(graph.named_parameters()).keys() == {f"0.{n}.weight" for n in range(len(chain.stages))} | bias
    whole = copy.deepcopy(model)
    whole[0].weight.data = layer.native(chain.dense())  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert_close(graph(x), whole(x), 1e-9)
        if layer.kind == "linear":
            bias_there = None if layer.bias is None else original.tensor(layer.bias)
            assert_close(chain.run(x, [stage.native for stage in chain.stages], bias_there), whole(x), 1e-9)
    assert chain.macs(layer) == method.skeleton(layer, ranks).macs(layer) == cost.macs(graph)
    assert Chain.whole(layer).macs(layer) == cost.macs(original)
    assert [w.shape for w in chain.weights] == [w.shape for w in method.skeleton(layer, ranks).weights]


@pytest.mark.parametrize(("method", "name"), pairs())
def test_scales_are_level_and_change_nothing(method: Method, name: str) -> None:
    layer = layer_in(captured(name)[2])
    if layer.groups > 1:
        return
    chain = small(label(method), name)
    features = chain.dense().flatten(1).shape[1]
    root = torch.randn(features, features, generator=torch.Generator().manual_seed(0)).double()
    metric = root @ root.T + torch.eye(features)
    for wanted in (None, metric):
        assert_close(level(chain, wanted).dense(), chain.dense(), 1e-9)
    leveled = level(chain, metric)
    first = Chain(leveled.stages[:1]).dense()
    if first.shape[2:] == chain.dense().shape[2:] and not chain.has_views:
        power = ((first.flatten(1) @ metric) * first.flatten(1)).sum(1)
        assert_close(power, torch.ones_like(power), 1e-6)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_every_factor_gets_a_gradient(method: Method) -> None:
    name = "linear" if method.refuses(layer_in(captured("linear")[2])) is None else "conv2d reflect"
    _, x, original = captured(name)
    graph = original.clone()
    apply(replace(method, rank=low(method, layer_in(original))), graph)
    graph.train()
    graph(x).square().sum().backward()
    assert len(list(graph.parameters())) >= 3
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in graph.parameters())


# ---- How near ---------------------------------------------------------------------------------------------------------


def lost(method: Method, name: str, ranks: Ranks) -> float:
    weight = weight_of(name)
    return float((method.decompose(layer_in(captured(name)[2]), weight, ranks).dense() - weight).square().sum())


def dropped(matrix: Tensor, rank: int) -> float:
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_error_is_what_theory_says(rank: int) -> None:
    w = weight_of("conv2d")
    assert lost(SVD(), "linear", (rank,)) == pytest.approx(dropped(weight_of("linear"), rank))
    assert lost(ChannelWise(), "conv2d", (rank,)) == pytest.approx(dropped(w.flatten(1), rank))
    rearranged = w.permute(1, 2, 0, 3).reshape(15, 18)
    assert lost(Separable(), "conv2d", (rank,)) == pytest.approx(dropped(rearranged, rank))
    per_channel = sum(dropped(w[:, c].flatten(1), rank) for c in range(5))
    assert lost(DepthwiseSeparable(), "conv2d", (rank,)) == pytest.approx(per_channel)
    bound = dropped(w.flatten(1), rank) + dropped(w.transpose(0, 1).flatten(1), rank)
    assert lost(Tucker(), "conv2d", (rank, rank)) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (6, 4)])
def test_a_tensor_train_is_within_the_bound_of_its_unfoldings(ranks: Ranks) -> None:
    method = TensorTrain(modes=((3, 2, 2), (2, 3, 3)))
    tensor = weight_of("linear").reshape(2, 3, 3, 3, 2, 2).permute(0, 3, 1, 4, 2, 5)
    bound = dropped(tensor.reshape(6, 36), ranks[0]) + dropped(tensor.reshape(36, 6), ranks[1])
    assert lost(method, "linear", ranks) <= bound * (1 + 1e-9)


def test_a_bond_may_be_wider_than_what_is_left_of_a_tensor_train() -> None:
    method = TensorTrain(modes=((12, 1, 1), (1, 2, 9)))
    assert method.full(layer_in(captured("linear")[2])) == (12, 9)
    tensor = weight_of("linear").reshape(1, 2, 9, 12)
    assert lost(method, "linear", (1, 9)) == pytest.approx(dropped(tensor.reshape(18, 12).T, 1))


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, n) for m in METHODS for n in ("conv2d reflect", "linear") if not m.refuses(layer_in(captured(n)[2]))],
    ids=lambda v: label(v) if isinstance(v, Method) else v,
)
def test_a_higher_rank_is_nearer_and_the_estimate_bounds_the_error(method: Method, name: str) -> None:
    layer, weight = layer_in(captured(name)[2]), weight_of(name)
    steps = [tuple(max(1, round(full * part)) for full in method.full(layer)) for part in (0.1, 0.3, 0.6)]
    found = [lost(method, name, ranks) / float(weight.square().sum()) for ranks in steps]
    assert 1 > found[0] > found[1] > found[2] >= 0
    estimates = method.estimate(layer, weight, steps)
    assert all(error <= bound * (1 + 1e-6) for error, bound in zip(found, estimates, strict=True))


def outer(*factors: Tensor) -> Tensor:
    letters = "abcd"[: len(factors)]
    return torch.einsum(",".join(f"{x}r" for x in letters) + "->" + letters, *factors)


def test_cp_finds_the_components_a_kernel_is_made_of() -> None:
    generator = torch.Generator().manual_seed(3)
    tensor = outer(*(torch.randn(size, 4, generator=generator).double() for size in (8, 7, 3, 3)))
    assert float((outer(*cp(tensor, 4)) - tensor).norm() / tensor.norm()) < 1e-3


def test_cp_components_stay_bounded_where_no_best_approximation_exists() -> None:
    """a a b + a b a + b a a has rank 3, and approximations of rank 2 as near as one likes whose components diverge."""
    a, b = torch.eye(4).double()[:2]
    tensor = sum(torch.einsum("i,j,k->ijk", *order) for order in ((a, a, b), (a, b, a), (b, a, a)))
    assert isinstance(tensor, Tensor)
    factors = cp(tensor, 2)
    components = torch.stack([f.norm(dim=0) for f in factors]).prod(0).norm() / tensor.norm()
    assert all(torch.isfinite(f).all() for f in factors)
    assert float((outer(*factors) - tensor).norm() / tensor.norm()) < 0.2
    assert float(components) < 8


@pytest.mark.thorough
def test_cp_correction_makes_components_smaller_at_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(12, 12, 3, 3, generator=generator).double() * torch.arange(1, 13).rsqrt()[:, None, None]
    sizes, errors = [], []
    for sweeps in (0, factorization.cp.CORRECTION):
        monkeypatch.setattr(factorization.cp, "CORRECTION", sweeps)
        factors = cp(tensor, 24)
        sizes.append(float(torch.stack([f.norm(dim=0) for f in factors]).prod(0).norm()))
        errors.append(float((outer(*factors) - tensor).norm()))
    assert sizes[1] < 0.8 * sizes[0]
    assert errors[1] < 1.01 * errors[0]


def test_the_largest_ridge_uses_up_the_error_it_may_make() -> None:
    generator = torch.Generator().manual_seed(0)
    known, wanted = (torch.randn(size, generator=generator).double() for size in ((40, 6), (9, 40)))
    wanted = wanted / wanted.norm()
    values, vectors = torch.linalg.eigh(known.T @ known)
    turned = wanted @ known @ vectors
    for bound in (0.9, 0.95, 0.99):
        ridge = factorization.cp.largest_ridge(values, turned.square().sum(0), bound)
        factor = turned / (values + ridge) @ vectors.T
        assert float((wanted - factor @ known.T).square().sum()) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("method", [SVD(), StackedKernels(), TensorTrain()], ids=label)
def test_two_factors_of_a_weight_share_its_size_evenly(method: Method) -> None:
    name = "linear" if method.refuses(layer_in(captured("linear")[2])) is None else "conv2d reflect"
    chain = small(label(method), name)
    assert_close(level(chain, None).weights, chain.weights, 1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_tiny_huge_and_empty_weights_give_no_nan(method: Method, scale: float) -> None:
    name = "linear" if method.refuses(layer_in(captured("linear")[2])) is None else "conv2d reflect"
    layer, weight = layer_in(captured(name)[2]), weight_of(name) * scale
    chain = method.decompose(layer, weight, low(method, layer))
    assert all(torch.isfinite(w).all() for w in chain.weights)
    assert float((chain.dense() - weight).norm()) <= float(weight.norm()) * (1 + 1e-6)


def test_stacked_kernels_find_the_stack_a_kernel_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(*sizes, 3, 3, generator=generator).double() for sizes in ((6, 8), (10, 6)))
    layer = layer_in(capture(C2(8, 10, 5), torch.randn(1, 8, 8, 8)))
    made = StackedKernels().skeleton(layer, (6,)).with_weights([first, second]).dense()
    found = StackedKernels().decompose(layer, made, (6,)).dense()
    assert float((found - made).norm() / made.norm()) < 1e-3


def test_block_terms_find_the_sum_a_weight_is_made_of_and_more_terms_are_nearer() -> None:
    layer, weight = layer_in(captured("linear")[2]), weight_of("linear")
    errors = [lost(BlockTerm(terms=n), "linear", (2,)) for n in (1, 2, 4)]
    assert float(weight.square().sum()) > errors[0] > errors[1] > errors[2]
    made = BlockTerm(terms=1).decompose(layer, weight, (2,)).dense()
    again = BlockTerm(terms=2).decompose(layer, made, (2,)).dense()
    assert_close(again, made, 1e-6)


# ---- In a graph -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_shared_weight_is_factorized_once_and_stays_shared() -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: F.conv2d(F.relu(m.conv(x)), m.conv.weight, stride=2) + m.conv.bias[:, None, None],
        conv=C2(6, 6, 5, padding=2),
    )
    x = torch.randn(2, 6, 9, 9)
    for method in (ChannelWise(), Separable(), Tucker(), CP(), DepthwiseSeparable(), StackedKernels()):
        graph = capture(model, x)
        full = method.full(layer_in(graph))
        assert len(apply(replace(method, rank=full), graph)) == 1
        assert_close(graph(x), model(x))
        stages = len(method.skeleton(layer_in(capture(model, x)), full).stages)
        assert sum(name.endswith("weight") for name, _ in graph.named_parameters()) == stages
        assert sum(name == "conv2d" for name in names(graph)) == 2 * stages


@pytest.mark.thorough
def test_a_shared_linear_layer_with_views_stays_shared() -> None:
    model = Model(lambda m, x: m.fc(F.relu(m.fc(x))) + m.fc(x.mean(1, keepdim=True)), fc=nn.Linear(16, 16))
    x = torch.randn(2, 5, 16)
    for method in (TensorTrain((16,)), BlockTerm(modes=2)):
        graph = capture(model, x)
        assert len(apply(replace(method, rank=method.full(layer_in(graph))), graph)) == 1
        assert_close(graph(x), model(x))
        assert names(graph).count("linear") == 3 * 2


def test_one_input_without_a_batch() -> None:
    model, x = nn.Linear(12, 18).eval(), torch.randn(12)
    for method in (TensorTrain(99), BlockTerm(99)):
        graph = capture(model, x, dynamic_batch=False)
        apply(replace(method, rank=method.full(layer_in(graph))), graph)
        assert_close(graph(x), model(x))


def test_modes_are_as_even_as_they_can_be() -> None:
    assert [balanced(n, 2) for n in (1024, 768, 10, 7, 1)] == [(32, 32), (24, 32), (2, 5), (1, 7), (1, 1)]
    assert [balanced(n, 3) for n in (1024, 1000, 18)] == [(8, 8, 16), (10, 10, 10), (2, 3, 3)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "tokens"), [(TensorTrain(0.5), (5,)), (BlockTerm(0.5), ())], ids=["TensorTrain", "BlockTerm"]
)
def test_tensor_stages_are_lowered_in_float_and_integer(method: Method, tokens: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    graph = capture(model, torch.randn(4, *tokens, 24))
    assert apply(method, graph)
    x, target = torch.randn(7, *tokens, 24), target_of("x86")
    with torch.no_grad():
        assert_close(lower(graph, target)(x), graph(x), 1e-5)
        data = [torch.randn(16, *tokens, 24) for _ in range(4)]
        result = graphopt.optimize(graph, target=target, calibration=data, measure=False)
        assert cost.sqnr(graph(x), result.artifact(x)) > 25
    left = [n for n in result.graph.calls() if Layer.of(n) and "fake_quantize" not in str(n.all_input_nodes[1].target)]
    assert left == []


# ---- Ranks ------------------------------------------------------------------------------------------------------------


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
    name = "linear" if method.refuses(layer_in(captured("linear")[2])) is None else "conv2d reflect"
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


# ---- With data --------------------------------------------------------------------------------------------------------


def correlated(count: int, *sizes: int, seed: int) -> Tensor:
    """Inputs most of whose power is in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(sizes[0], sizes[0], generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -2, sizes[0])
    return torch.einsum("nc...,dc->nd...", torch.randn(count, *sizes, generator=generator), mix)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_factors_of_data_answer_better_than_factors_of_weights(method: Method) -> None:
    torch.manual_seed(0)
    if method.refuses(layer_in(captured("linear")[2])) is None:
        model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24, bias=False), nn.ReLU(), nn.Linear(24, 12))
        sizes: tuple[int, ...] = (24,)
    else:
        model = nn.Sequential(C2(4, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), C2(6, 5, 5, padding=2, bias=False))
        sizes = (4, 8, 8)
    model.eval()
    data, x = [[correlated(32, *sizes, seed=s)] for s in range(4)], correlated(32, *sizes, seed=10)
    errors = []
    for batches in (None, data):
        graph = capture(model, x)
        full = method.full(layer_in(graph))
        apply(replace(method, rank=tuple(max(1, r // 4) for r in full), data=batches), graph)
        with torch.no_grad():
            errors.append(float((graph(x) - model(x)).square().sum()))
    assert errors[1] < errors[0]


def test_grouped_and_shared_layers_keep_the_factors_of_their_weight() -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: m.shared(F.relu(m.shared(F.relu(m.grouped(x))))),
        grouped=C2(4, 8, 3, groups=2, padding=1), shared=C2(8, 8, 3, padding=1),
    )  # fmt: skip
    x = torch.randn(8, 4, 6, 6)
    found = []
    for data in (None, [[x]]):
        graph = capture(model, x)
        assert len(apply(Tucker(2, data=data), graph)) == 2
        found.append({n: p.detach() for n, p in graph.named_parameters() if n.endswith("weight")})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_tensor_train_gets_the_bias_that_data_ask_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16)).eval()
    data = [[torch.rand(64, 16) + 1] for _ in range(4)]
    graph = capture(model, data[0][0])
    apply(TensorTrain(2, data=data), graph)
    assert "0.bias" in dict(graph.named_parameters())
    with torch.no_grad():
        apart = (graph(data[0][0]) - model(data[0][0])).mean(0)
    assert float(apart.abs().max()) < 0.05

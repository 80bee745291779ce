"""Every factorization is as near to its weight as theory says."""

from __future__ import annotations

import pytest
import torch
from factorizations import APPLIES, C2, METHODS, captured, dropped, label, layer_in, lost, low, outer, small, weight_of
from rewriting import assert_close, capture
from torch import Tensor

from graphopt.passes import factorization
from graphopt.passes.factorization import (
    SVD,
    BlockTerm,
    ChannelWise,
    DepthwiseSeparable,
    Separable,
    StackedKernels,
    TensorTrain,
    Tucker,
)
from graphopt.passes.factorization.cp import decompose as cp
from graphopt.passes.factorization.fitting import level
from graphopt.passes.factorization.method import Method, Ranks


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
    [(m, n) for m in METHODS for n in ("conv2d reflect", "linear") if n in APPLIES[type(m)]],
    ids=lambda v: label(v) if isinstance(v, Method) else v,
)
def test_a_higher_rank_is_nearer_and_the_estimate_bounds_the_error(method: Method, name: str) -> None:
    layer, weight = layer_in(captured(name)[2]), weight_of(name)
    steps = [tuple(max(1, round(full * part)) for full in method.full(layer)) for part in (0.1, 0.3, 0.6)]
    found = [lost(method, name, ranks) / float(weight.square().sum()) for ranks in steps]
    assert 1 > found[0] > found[1] > found[2] >= 0
    estimates = method.estimate(layer, weight, steps)
    assert all(error <= bound * (1 + 1e-6) for error, bound in zip(found, estimates, strict=True))


def test_cp_finds_the_components_a_kernel_is_made_of() -> None:
    generator = torch.Generator().manual_seed(3)
    tensor = outer(*(torch.randn(size, 4, generator=generator).double() for size in (8, 7, 3, 3)))
    assert float((outer(*cp(tensor, 4)) - tensor).norm() / tensor.norm()) < 1e-3


@pytest.mark.thorough
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
    name = "linear" if "linear" in APPLIES[type(method)] else "conv2d reflect"
    chain = small(label(method), name)
    assert_close(level(chain, None).weights, chain.weights, 1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_tiny_huge_and_empty_weights_give_no_nan(method: Method, scale: float) -> None:
    name = "linear" if "linear" in APPLIES[type(method)] else "conv2d reflect"
    layer, weight = layer_in(captured(name)[2]), weight_of(name) * scale
    chain = method.decompose(layer, weight, low(method, layer))
    assert all(torch.isfinite(w).all() for w in chain.weights)
    assert float((chain.dense() - weight).norm()) <= float(weight.norm()) * (1 + 1e-6)


@pytest.mark.thorough
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

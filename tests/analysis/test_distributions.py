"""Moments from batch norms, judged by scipy's integrals and by samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, apply, capture
from scipy import integrate, stats
from torch import Tensor, nn

from graphopt.analysis.distributions import Distributions
from graphopt.analysis.normals import clipped_normal, expected_maximum
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.equalization.equalize_channels import EqualizeChannels


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5), (2.0, 2.5)])
@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 3.0), (5.9, 0.01), (40.0, 1.0), (-9.0, 1.0)]
)
def test_clipped_normals_have_the_moments_that_integration_finds(
    low: float, high: float, mean: float, deviation: float
) -> None:
    normal = stats.norm(mean, deviation)

    def moment(power: int) -> float:
        ends = max(low, mean - 12 * deviation), min(high, mean + 12 * deviation)
        inside = integrate.quad(
            lambda x: x**power * normal.pdf(x), *ends, points=[mean] if ends[0] < mean < ends[1] else None
        )
        below = low**power * normal.cdf(low) if math.isfinite(low) else 0.0
        above = high**power * normal.sf(high) if math.isfinite(high) else 0.0
        return (inside[0] if ends[0] < ends[1] else 0.0) + below + above  # type: ignore[no-any-return]

    found = clipped_normal(*(torch.tensor(v, dtype=torch.float64) for v in (mean, deviation, low, high)))
    assert float(found[0]) == pytest.approx(moment(1), rel=1e-7, abs=1e-9)
    assert float(found[1]) == pytest.approx(moment(2) - moment(1) ** 2, rel=1e-5, abs=1e-7)


def test_a_value_without_deviation_is_clipped_as_it_is() -> None:
    mean = torch.tensor([-1.0, 0.5, 9.0]).double()
    found = clipped_normal(mean, torch.zeros(3).double(), torch.tensor(0.0).double(), torch.tensor(6.0).double())
    assert found[0].tolist() == [0.0, 0.5, 6.0]
    assert found[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_expected_maximum_is_that_of_the_order_statistic(count: int) -> None:
    density = lambda x: x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1)  # noqa: E731
    assert expected_maximum(count) == pytest.approx(integrate.quad(density, -12, 12)[0], abs=1e-4)


def follow(model: nn.Module, *passes: Any) -> tuple[Graph, Distributions]:
    graph = capture(model, torch.randn(2, 3, 6, 6))
    for transform in passes:
        apply(transform, graph)
    return graph, Distributions.of(graph)


def sampled(body: Any, *norms: nn.BatchNorm2d, count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean and variance of a function of independent normal values with these norms' moments, one position."""
    drawn = [
        torch.randn(count, n.num_features, 1, 1) * n.weight.abs()[:, None, None] + n.bias[:, None, None] for n in norms
    ]
    with torch.no_grad():
        found = body(*drawn).double()
    return found.mean(0), found.var(0)


def branches(body: Any) -> Model:
    return Model(
        lambda m, x: m.head(body(m.one(m.first(x)), m.two(m.second(x)))),
        first=nn.Conv2d(3, 5, 1), second=nn.Conv2d(3, 5, 1), one=nn.BatchNorm2d(5), two=nn.BatchNorm2d(5),
        head=nn.Conv2d(5, 2, 1),
    )  # fmt: skip


BODIES: dict[str, Any] = {
    "relu": lambda a, b: F.relu(a),
    "relu6": lambda a, b: F.relu6(a * 1.0),
    "relu of relu6": lambda a, b: F.relu(F.relu6(a)),
    "residual": lambda a, b: F.relu(F.relu(a) + b),
    "difference": lambda a, b: a - F.relu(b),
    "twice": lambda a, b: a + a,
    "itself taken away": lambda a, b: a - a,
    "leaky": lambda a, b: F.leaky_relu(a, 0.1),
    "hard-swish": lambda a, b: a * F.hardsigmoid(a),
    "silu": lambda a, b: F.silu(a),
    "gate": lambda a, b: F.relu(a) * torch.sigmoid(b),
    "affine": lambda a, b: (a + 2.0) * 0.5,
}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_what_follows_a_norm_has_the_moments_of_samples(name: str, folded: bool) -> None:
    model = branches(BODIES[name])
    graph, found = follow(model, *[FoldBatchNorm()] * folded)
    value = found.known[graph.calls(torch.ops.aten.conv2d.default)[-1].args[0]]  # type: ignore[index]
    mean, variance = sampled(BODIES[name], model.one, model.two)
    noise = 5 * (variance / 20_000).sqrt() + 1e-3
    assert bool(((value.mean[0].flatten(1).mean(1) - mean.flatten()).abs() < noise.flatten()).all())
    # a residual stream is no longer normal, and is clipped as if it were
    loose = 0.25 if name == "residual" else 0.06
    torch.testing.assert_close(value.variance[0, :, :1, :1], variance, rtol=loose, atol=5e-3)


def test_moves_pads_and_pools_carry_means_to_their_places() -> None:
    model = Model(
        lambda m, x: m.head(F.avg_pool2d(F.pad(torch.cat([m.norm(m.conv(x)), m.norm(m.conv(x))[:, :2]], 1), (0, 2, 0, 0)), 2)),
        conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), head=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    graph, found = follow(model)
    value = found.known[graph.calls(torch.ops.aten.conv2d.default)[-1].args[0]]  # type: ignore[index]
    beta = torch.cat([model.norm.bias, model.norm.bias[:2]]).double()
    assert value.mean.shape == (1, 6, 3, 4)
    torch.testing.assert_close(value.mean[0, :, :, :3], beta[:, None, None].expand(6, 3, 3))
    assert not bool(value.mean[..., 3].any())


def test_the_mean_behind_a_max_pool_lies_between_equal_and_independent_neighbours() -> None:
    model = Model(
        lambda m, x: m.head(F.max_pool2d(m.norm(m.conv(x)), 3, 2, 1)),
        conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), head=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    graph, found = follow(model)
    value = found.known[graph.calls(torch.ops.aten.conv2d.default)[-1].args[0]]  # type: ignore[index]
    above = (value.mean[0, :, 0, 0] - model.norm.bias.double()) / model.norm.weight.abs().double()
    np.testing.assert_allclose(above.detach(), 1.4850 / 2, rtol=1e-3)  # E[max of 9] from tables of order statistics


def test_what_no_norm_speaks_of_is_unknown_and_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 3, 1))
    _, found = follow(model)
    assert set(found.unknown.values()) == {"no batch norm says what the input 'input' is like"}
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Softmax(1), nn.Conv2d(4, 3, 1))
    _, found = follow(model)
    assert "no batch norm behind softmax at '2'" in found.unknown.values()


def real_means(graph: Graph, x: Tensor) -> list[Tensor]:
    from graphopt.execution.executor import Executor

    convs = graph.calls(torch.ops.aten.conv2d.default)
    return [v.double().mean((0, 2, 3)) for v in Executor(graph).run(convs[:-1], [x]).values()]


@pytest.mark.thorough
def test_passes_that_rescale_and_clear_channels_keep_the_moments_true() -> None:
    """Statistics measured on the data, then passes, then the moments against the data again."""
    model = Model(
        lambda m, x: m.c3(F.relu(m.n2(m.c2(F.relu(m.n1(m.c1(x))))))),
        c1=nn.Conv2d(3, 6, 3), n1=nn.BatchNorm2d(6), c2=nn.Conv2d(6, 6, 1), n2=nn.BatchNorm2d(6), c3=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    x = torch.randn(64, 3, 6, 6)
    with torch.no_grad():
        model.c1.weight[2] = 0.0
        model.c2.weight *= torch.logspace(-1, 1, 6)[:, None, None, None]
    for norm in (model.n1, model.n2):
        norm.momentum = None
    model.train()(x)
    model.eval()
    graph, _ = follow(model, FoldBatchNorm(), FoldConstantChannels(), EqualizeChannels())
    found = Distributions.of(graph)
    convs = graph.calls(torch.ops.aten.conv2d.default)
    for conv, mean in zip(convs, real_means(graph, x), strict=False):
        torch.testing.assert_close(found.known[conv].mean[0].flatten(1).mean(1), mean, rtol=0.02, atol=0.02)

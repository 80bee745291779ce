"""Range estimators, judged by the data: NumPy's percentile, and squared errors counted element by element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from graphopt.execution.observers import Histogram
from graphopt.formats import Format, fake_quantize, quantize, scale_and_zero_point
from graphopt.passes.quantization import ranges
from graphopt.passes.quantization.ranges import (
    ESTIMATORS,
    WORTH_CLIPPING,
    aciq,
    entropy,
    laplace_end,
    minmax,
    mse,
    normal_end,
    percentile,
    weight_range,
)

SIGNED, UNSIGNED = Format(8, symmetric=False), Format(8, signed=False, symmetric=False)


def histogram(value: Tensor) -> Histogram:
    found = Histogram()
    found.update(value)
    return found


def error(value: Tensor, low: float, high: float, format: Format) -> float:
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
    rounded = fake_quantize(value, scale, zero_point, format.quant_min, format.quant_max, -1)
    return float((rounded - value).double().square().sum())


DATA: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: torch.randn(40_000),
    "relu": lambda: torch.randn(40_000).relu(),
    "uniform": lambda: torch.rand(40_000),
    "laplace": lambda: torch.distributions.Laplace(0.0, 1.0).sample((40_000,)),
    "outliers": lambda: torch.cat([torch.randn(40_000), torch.tensor([90.0, -80.0])]),
    "one sided outlier": lambda: torch.cat([torch.randn(40_000).relu(), torch.tensor([300.0])]),
    "off centre": lambda: torch.randn(40_000) + 3,
    "negative": lambda: -torch.rand(40_000),
    "hard-swish": lambda: torch.nn.functional.hardswish(torch.randn(40_000) * 3),
    "two values": lambda: torch.tensor([0.0, 1.0]).repeat(100),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("format", [SIGNED, UNSIGNED, Format(8), Format(4), Format(8, power_of_two=True)], ids=str)
def test_mse_is_never_worse_than_minmax(name: str, format: Format) -> None:
    value = DATA[name]()
    found = histogram(value)
    # the histogram knows each element to within a bin, which can cost a hundredth
    assert error(value, *mse(found, format), format) <= error(value, *minmax(found, format), format) * 1.01 + 1e-9


@pytest.mark.parametrize("name", ["outliers", "laplace", "relu", "one sided outlier", "hard-swish"])
@pytest.mark.parametrize("format", [Format(4), Format(4, symmetric=False), Format(8), SIGNED], ids=str)
def test_mse_is_as_good_as_an_exhaustive_search_for_one_share_of_both_ends(name: str, format: Format) -> None:
    value = DATA[name]()
    found = histogram(value)
    low, high = min(found.low, 0.0), found.high
    best = min(error(value, low * s / 500, high * s / 500, format) for s in range(5, 501, 2))
    chosen = mse(found, format)
    if chosen == minmax(found, format):  # clipping would have gained too little
        best *= WORTH_CLIPPING
    assert error(value, *chosen, format) <= best * 1.05


@pytest.mark.parametrize(("samples", "clips"), [(100, False), (1, True)])
def test_mse_clips_where_that_gains_a_decibel(samples: int, clips: bool) -> None:
    """What transformers have in every sample: one element far from the others, that all that follows rests on."""
    value = torch.nn.functional.gelu(torch.randn(100, 10_000))
    value[:samples, 0] = 25 + torch.randn(samples) / 4
    found = histogram(value)
    assert (mse(found, UNSIGNED)[1] < found.high) == clips
    gain = error(value, found.low, found.high, UNSIGNED) / min(
        error(value, found.low * s / 100, found.high * s / 100, UNSIGNED) for s in range(1, 101)
    )
    assert (gain > WORTH_CLIPPING) == clips


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "outliers", "off centre"])
def test_percentile_is_numpys(name: str) -> None:
    value = DATA[name]()
    found = histogram(value)
    low, high = percentile(found, SIGNED)
    assert low == pytest.approx(np.percentile(value.numpy(), 0.01), abs=2 * found.width + 0.3)
    assert high == pytest.approx(np.percentile(value.numpy(), 99.99), abs=2 * found.width + 0.3)
    low, high = percentile(found, SIGNED, percent=95.0)
    assert low == pytest.approx(np.percentile(value.numpy(), 5), abs=found.width)
    assert high == pytest.approx(np.percentile(value.numpy(), 95), abs=found.width)


def test_percentile_cuts_an_outlier() -> None:
    assert percentile(histogram(DATA["one sided outlier"]()), UNSIGNED)[1] < 10


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", DATA)
def test_no_estimator_leaves_the_data(estimator: str, name: str) -> None:
    value = DATA[name]()
    low, high = ESTIMATORS[estimator](histogram(value), SIGNED)
    assert min(float(value.min()), 0) - 1e-6 <= low <= high <= max(float(value.max()), 0) + 1e-6


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "value", [torch.zeros(10), torch.full((10,), 3.0), torch.full((10,), -3.0), torch.tensor([1e-30])]
)
def test_every_estimator_survives_constants(estimator: str, value: Tensor) -> None:
    low, high = ESTIMATORS[estimator](histogram(value), SIGNED)
    assert np.isfinite([low, high]).all()
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), SIGNED)
    rounded = fake_quantize(value, scale, zero_point, SIGNED.quant_min, SIGNED.quant_max, -1)
    torch.testing.assert_close(rounded, value, rtol=0.01, atol=1e-10)


@pytest.mark.parametrize("name", ["outliers", "one sided outlier"])
def test_entropy_ignores_outliers(name: str) -> None:
    low, high = entropy(histogram(DATA[name]()), SIGNED)
    assert high < 75
    assert low > -75


@pytest.mark.parametrize("name", ["normal", "relu", "uniform"])
def test_entropy_keeps_most_of_a_well_behaved_range(name: str) -> None:
    value = DATA[name]()
    low, high = entropy(histogram(value), SIGNED)
    assert float(((value >= low) & (value <= high)).double().mean()) > 0.95


def divergence(found: Histogram, format: Format, low: float, high: float) -> float:
    """KL(P || Q) of one range, step by step as the paper says it."""
    centers, counts = found.centers, found.counts
    inside = (centers >= low - found.width) & (centers <= high + found.width)
    kept = counts * inside * (centers.abs() >= found.width)
    p, where = kept.clone(), inside.nonzero().flatten()
    p[where[0]] += counts[: where[0]].sum()
    p[where[-1]] += counts[where[-1] + 1 :].sum()
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
    codes = quantize(centers, scale.double(), zero_point, format.quant_min, format.quant_max)
    q = torch.zeros_like(p)
    for code in codes[where].unique():
        step = (codes == code) & (kept > 0)
        q[step] = kept[step].sum() / step.sum()
    if not float(p.sum()) or not float(q.sum()):
        return 0.0
    p, q = p / p.sum(), q / q.sum()
    return float((p * ((p + 1e-12).log() - (q + 1e-12).log())).sum())


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("format", [SIGNED, UNSIGNED, Format(8), Format(4, symmetric=False)], ids=str)
def test_entropy_computes_many_ranges_at_once_as_it_would_one_by_one(name: str, format: Format) -> None:
    found = histogram(DATA[name]())

    def one_by_one(found: Histogram, format: Format, lows: Tensor, highs: Tensor) -> Tensor:
        pairs = zip(lows.tolist(), highs.tolist(), strict=True)
        each = torch.tensor([divergence(found, format, low, high) for low, high in pairs], dtype=torch.float64).round(
            decimals=12
        )
        torch.testing.assert_close(ranges._divergence(found, format, lows, highs), each, rtol=1e-9, atol=1e-12)
        return each

    assert entropy(found, format) == ranges._search(found, format, one_by_one, stride=5)


@pytest.mark.parametrize(("bits", "laplace", "normal"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)])
def test_clipping_ends_are_those_of_the_paper(bits: int, laplace: float, normal: float) -> None:
    assert laplace_end(bits) == pytest.approx(laplace, abs=0.01)
    assert normal_end(bits) == pytest.approx(normal, abs=0.01)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", ["normal", "laplace"])
def test_aciq_is_nearly_the_best_range_of_the_distributions_it_is_made_for(name: str, relu: bool, bits: int) -> None:
    value = DATA[name]().relu() if relu else DATA[name]()
    format = Format(bits, signed=False, symmetric=False)
    best = error(value, *mse(histogram(value), format), format)
    assert error(value, *aciq(histogram(value), format), format) < 1.15 * best


def test_aciq_takes_the_distribution_that_fits() -> None:
    normal, laplace = torch.randn(100_000), DATA["laplace"]()
    format = Format(4, symmetric=False)
    assert aciq(histogram(normal), format)[1] == pytest.approx(2.55, abs=0.05)
    assert aciq(histogram(laplace), format)[1] == pytest.approx(5.03, abs=0.15)
    assert aciq(histogram(normal.relu()), format)[1] == pytest.approx(normal_end(5), abs=0.05)
    assert aciq(histogram(normal.relu()), Format(4))[1] == pytest.approx(normal_end(4), abs=0.05)
    assert aciq(histogram(-normal.relu()), format)[0] == pytest.approx(-normal_end(5), abs=0.05)


# ---- Weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_weight_search_is_never_worse_than_covering_all(bits: int, per_channel: bool) -> None:
    weight = torch.distributions.Laplace(0.0, 1.0).sample((6, 4, 3, 3)) * torch.logspace(-2, 1, 6).reshape(-1, 1, 1, 1)
    format = Format(bits, per_channel=per_channel)
    errors = []
    for method in ("mse", "minmax"):
        low, high = weight_range(weight, format, method)
        assert low.shape == high.shape == ((6,) if per_channel else ())
        scale, zero_point = scale_and_zero_point(low, high, format)
        axis = 0 if per_channel else -1
        rounded = fake_quantize(weight, scale, zero_point, format.quant_min, format.quant_max, axis)
        squared = (rounded - weight).square()
        errors.append(squared.flatten(1).sum(1) if per_channel else squared.sum()[None])
    assert bool((errors[0] <= errors[1] * (1 + 1e-6)).all())
    if bits <= 4:
        assert bool((errors[0] < errors[1]).any())


@pytest.mark.parametrize("method", ["mse", "aciq"])
def test_at_four_bits_clipped_weights_lose_less_than_covered_ones(method: str) -> None:
    weight, format = torch.randn(8, 64, 3, 3), Format(4, per_channel=True)

    def lost(method: str) -> Tensor:
        scale, zero_point = scale_and_zero_point(*weight_range(weight, format, method), format)
        rounded = fake_quantize(weight, scale, zero_point, format.quant_min, format.quant_max, 0)
        return (rounded - weight).square().flatten(1).mean(1)

    assert bool((lost(method) < 0.9 * lost("minmax")).all())


def test_minmax_covers_every_weight_of_a_channel() -> None:
    weight = torch.randn(5, 3, 2)
    low, high = weight_range(weight, Format(8, per_channel=True), "minmax")
    assert torch.equal(low, weight.flatten(1).amin(1))
    assert torch.equal(high, weight.flatten(1).amax(1))


def test_a_channel_of_zeros_keeps_an_empty_range() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    low, high = weight_range(weight, Format(8, per_channel=True), "mse")
    assert float(low[1]) == float(high[1]) == 0
    assert bool(torch.isfinite(low).all())

"""Binary and ternary formats: the papers' formulas element by element, and the best threshold by trying all."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from graphopt.formats import FAKE_QUANTIZE_SIGNS, Binary, Quantizer, Ternary


def rows(seed: int) -> Tensor:
    return torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [[1.0], [1e-3], [30.0], [0.2]]
    )


def test_binary_is_the_sign_times_the_mean_size_of_xnor_net() -> None:
    x = rows(0)
    quantizer = Binary(per_channel=True).fit(x, 0)
    for row, rounded in zip(x.tolist(), quantizer(x).tolist(), strict=True):
        alpha = sum(map(abs, row)) / len(row)
        assert rounded == pytest.approx([alpha if value >= 0 else -alpha for value in row])
    assert Binary().fit(torch.tensor([0.0, -0.0, 2.0]))(torch.tensor([0.0, -0.0, -1e-30])).sign().tolist() == [1, 1, -1]


def test_no_other_scale_of_the_signs_has_a_smaller_error() -> None:
    x = rows(1)
    alpha = Binary(per_channel=True).fit(x, 0).parameters[0]
    errors = [(x.sign() * (alpha * factor)[:, None] - x).square().sum(1) for factor in (0.99, 1.0, 1.01)]
    assert bool((errors[1] < errors[0]).all() and (errors[1] < errors[2]).all())


def test_ternary_weights_are_those_of_twn() -> None:
    x = rows(2)
    rounded = Ternary(per_channel=True).fit(x, 0)(x)
    for row, found in zip(x.tolist(), rounded.tolist(), strict=True):
        delta = 0.7 * sum(map(abs, row)) / len(row)
        beyond = [abs(value) for value in row if abs(value) > delta]
        alpha = sum(beyond) / len(beyond)
        wanted = [0.0 if abs(value) <= delta else alpha if value > 0 else -alpha for value in row]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_the_threshold_of_least_error_beats_every_other_set_of_zeros() -> None:
    """All 2^9 choices of what is zero, with the best scale for each."""
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(3))
    found = (Ternary(per_channel=True).fit(x, 0, "mse")(x) - x).double().square().sum(1)
    for row, error in zip(x.double(), found.tolist(), strict=True):
        least = float("inf")
        for kept in itertools.product([0.0, 1.0], repeat=9):
            mask = torch.tensor(kept, dtype=torch.float64)
            scale = (row.abs() * mask).sum() / mask.sum().clamp(min=1)
            least = min(least, float((row - row.sign() * mask * scale).square().sum()))
        assert error == pytest.approx(least, rel=1e-5)


def test_two_scales_are_the_means_of_their_sides_to_half_a_step() -> None:
    x = rows(4) * torch.where(rows(4) > 0, 1.4, 1.0)
    quantizer = Ternary(per_channel=True, two_scales=True).fit(x, 0)
    scale, threshold, below, above = quantizer.parameters
    assert bool((torch.maximum(below, above) == 127).all())
    for row, t, s, low, high in zip(x, threshold, scale, below, above, strict=True):
        for side, end in ((row[row >= t], high), (-row[row <= -t], low)):
            assert float(end * s) == pytest.approx(float(side.mean()), abs=0.51 * float(s))


def test_the_gradient_goes_straight_through_and_the_scale_has_that_of_its_members() -> None:
    x = rows(5).requires_grad_()
    scale, *rest = Ternary(per_channel=True).fit(x.detach(), 0).parameters
    scale.requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    (FAKE_QUANTIZE_SIGNS(x, scale, *rest, 2, 0) * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weights)
    member = torch.where(x.detach() >= rest[0][:, None], 1.0, torch.where(x.detach() <= -rest[0][:, None], -1.0, 0.0))
    torch.testing.assert_close(scale.grad, (weights * member).sum(1))


def test_codes_of_one_bit_are_zero_and_one() -> None:
    quantizer = Quantizer(Binary(), tuple(torch.tensor(v) for v in (0.5, 0.0, 1, 1)))
    x = torch.tensor([-3.0, 0.0, 0.1])
    assert quantizer.quantize(x).tolist() == [0, 1, 1]
    assert quantizer.dequantize(quantizer.quantize(x)).tolist() == [-0.5, 0.5, 0.5]
    assert torch.isnan(quantizer(torch.tensor(float("nan"))))

"""Rounding in pieces computes what the chain of elementwise operators computes, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphopt.formats import FAKE_QUANTIZE, dequantize, pieces, quantize

GRIDS = [(0, 255, 0), (0, 255, 131), (-128, 127, -7), (-7, 7, 0), (0, 3, 0), (0, 1, 0)]
SIZE = (3, 24, 64, 64)  # more than one piece


def values(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    x = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 3
    x.view(-1)[::7] = torch.arange(len(x.view(-1)[::7])) % 9 * 0.05 - 0.2  # ties between codes
    return x.to(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("low", "high", "zero"), GRIDS)
def test_it_is_the_chain_to_the_last_bit(low: int, high: int, zero: int, layout: torch.memory_format) -> None:
    x, scale, zero_point = values(layout), torch.tensor(0.1), torch.tensor(zero, dtype=torch.int32)
    assert pieces.fits(x, scale, zero_point, -1)
    assert x.numel() > pieces.PIECE
    found = FAKE_QUANTIZE(x, scale, zero_point, low, high, -1)
    wanted = dequantize(quantize(x, scale, zero_point, low, high), scale, zero_point)
    assert torch.equal(found, wanted)
    assert torch.equal(1 / found, 1 / wanted), "zeros have no sign"
    assert found.stride() == x.stride()


@pytest.mark.parametrize(("low", "high", "zero"), GRIDS)
def test_its_gradients_are_those_of_each_element(low: int, high: int, zero: int) -> None:
    x, scale, zero_point = values().double(), torch.tensor(0.1), torch.tensor(zero, dtype=torch.int32)
    x += 0.0123  # off the ties, where either side would do
    gradient = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    inside = ((x / 0.1).round() + zero >= low) & ((x / 0.1).round() + zero <= high)
    slope = torch.where(inside, (x / 0.1).round() - x / 0.1, (x / 0.1).round().clamp(low - zero, high - zero))
    wanted = (gradient * slope).sum() / (x.numel() * high) ** 0.5
    leaf, step = x.float().requires_grad_(), scale.clone().requires_grad_()
    FAKE_QUANTIZE(leaf, step, zero_point, low, high, -1).backward(gradient.to(memory_format=torch.channels_last))
    assert leaf.grad is not None
    assert step.grad is not None
    assert torch.equal(leaf.grad, gradient * inside)
    torch.testing.assert_close(step.grad.double(), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_not_dense_or_not_on_one_grid_goes_through_the_chain() -> None:
    x, one = values(), torch.tensor(0.1)
    zero = torch.tensor(0, dtype=torch.int32)
    for other in (x[:, ::2], x.transpose(0, 3), x.double(), x[:, :, 0].expand(24, 3, 24, 64)):
        assert not pieces.fits(other, one, zero, -1)
        wanted = dequantize(quantize(other, one, zero, 0, 15), one, zero).to(other.dtype)
        assert torch.equal(FAKE_QUANTIZE(other, one, zero, 0, 15, -1), wanted)
    assert not pieces.fits(x, torch.rand(24), zero, 1)


def test_empty_values_and_not_a_number() -> None:
    one, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    assert FAKE_QUANTIZE(torch.empty(0, 3), one, zero, 0, 15, -1).shape == (0, 3)
    found = FAKE_QUANTIZE(torch.tensor([torch.nan, torch.inf, -torch.inf]), one, zero, 0, 15, -1)
    assert bool(found[0].isnan())
    assert found[1:].tolist() == pytest.approx([1.5, 0.0])

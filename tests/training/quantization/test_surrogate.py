"""Rounding with other gradients, against the published formulas, element by element."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graphopt.formats import FAKE_QUANTIZE
from graphopt.training.quantization.surrogate import QUANTIZE_IN_TRAINING, ROUNDINGS

LOW, HIGH = 0, 7
SCALE, ZERO = 0.3, 2.0
SHARP = 5.0


def call(
    x: Tensor, rounding: str, *, scale: Any = SCALE, zero: Any = ZERO, training: bool = True, clipped: bool = False
) -> Tensor:
    scale, zero = torch.as_tensor(scale), torch.as_tensor(zero)
    sharpness = torch.tensor(1.0 if rounding == "stochastic" else SHARP)
    found: Tensor = QUANTIZE_IN_TRAINING(x, scale, zero, LOW, HIGH, -1, rounding, sharpness, clipped, training)
    return found


def values() -> Tensor:
    return torch.randn(400, generator=torch.Generator().manual_seed(0)) * 1.2


def curve(fraction: float) -> float:
    """From 0 to 1 over a step, as DSQ writes it: a tanh, moved and stretched."""
    k = SHARP / 2
    return (math.tanh(k * (fraction - 0.5)) / math.tanh(k / 2) + 1) / 2


def derivative(fraction: float) -> float:
    return (curve(fraction + 1e-6) - curve(fraction - 1e-6)) / 2e-6


def inside(v: float, rounding: str) -> bool:
    margin = 0.0 if rounding == "soft" else 0.5
    return LOW - ZERO - margin <= v <= HIGH - ZERO + margin


@pytest.mark.parametrize("rounding", [r for r in ROUNDINGS if r != "toward_zero"])
def test_in_eval_mode_it_is_the_quantizer_of_the_graph(rounding: str) -> None:
    x, zero = values(), torch.tensor(2, dtype=torch.int32)
    assert torch.equal(call(x, rounding, training=False), FAKE_QUANTIZE(x, torch.tensor(SCALE), zero, LOW, HIGH, -1))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_values_and_gradients_in_training_follow_the_formulas(rounding: str) -> None:
    torch.manual_seed(0)
    x = values().requires_grad_()
    y = call(x, rounding)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    for value, found, gradient in zip(x.tolist(), y.tolist(), x.grad.tolist(), strict=True):
        v = value / SCALE
        fraction = v - math.floor(v)
        code = {
            "soft": math.floor(v) + curve(fraction),
            "toward_zero": math.copysign(math.floor(abs(v) + 1e-3), v),
        }.get(rounding, round(v))
        if rounding == "stochastic":
            code = min((math.floor(v), math.ceil(v)), key=lambda c: abs((min(max(c, -2), 5)) * SCALE - found))
        assert found == pytest.approx(min(max(code, LOW - ZERO), HIGH - ZERO) * SCALE, abs=2e-4)
        wanted = derivative(fraction) if rounding in ("hard", "soft") else 1.0
        assert gradient == pytest.approx(wanted if inside(v, rounding) else 0.0, abs=2e-3)


def test_stochastic_rounding_is_right_on_average_and_never_twice_the_same() -> None:
    torch.manual_seed(0)
    x = torch.full((20000,), 0.4)
    assert float(call(x, "stochastic").mean()) == pytest.approx(0.4, abs=0.005)
    assert not torch.equal(call(x, "stochastic"), call(x, "stochastic"))


def test_the_scale_of_soft_steps_has_the_gradient_that_differences_show() -> None:
    x, scale = values().double(), torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    call(x, "soft", scale=scale).sum().backward()
    ends = [float(call(x, "soft", scale=torch.tensor(SCALE + d, dtype=torch.float64)).sum()) for d in (-1e-6, 1e-6)]
    assert scale.grad is not None
    norm = (x.numel() * HIGH) ** 0.5
    assert float(scale.grad) * norm == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=0.02)


def test_pact_learns_a_scale_from_what_it_clips_and_an_offset_moves_the_ends() -> None:
    x = torch.tensor([-3.0, 0.1, 0.4, 5.0, 6.0])
    scale, zero = torch.tensor(SCALE, requires_grad=True), torch.tensor(ZERO, requires_grad=True)
    norm = (x.numel() * HIGH) ** 0.5
    call(x, "nearest", scale=scale, zero=zero, clipped=True).sum().backward()
    assert scale.grad is not None
    assert zero.grad is not None
    assert float(scale.grad) * norm == pytest.approx((LOW - ZERO) + 2 * (HIGH - ZERO))
    assert float(zero.grad) * norm == pytest.approx(-3 * SCALE, rel=1e-5)  # three elements are clipped


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_operator_passes_torchs_own_checks(rounding: str) -> None:
    arguments = (
        values().reshape(4, 100).requires_grad_(), torch.rand(4).add(0.1).requires_grad_(), torch.zeros(4).requires_grad_(),
        -7, 7, 0, rounding, torch.tensor(2.0), False, False,
    )  # fmt: skip
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    found = torch.library.opcheck(QUANTIZE_IN_TRAINING, arguments, test_utils=checks)
    assert found == dict.fromkeys(checks, "SUCCESS")

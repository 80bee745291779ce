"""The quantizer that training puts in the place of a graph's own, where rounding has another gradient than straight through.

With v = x / scale, f = v - floor(v), and the curve of sharpness T that rises from 0 to 1 over one step,

    c(f) = (sigmoid(T (f - 1/2)) - sigmoid(-T / 2)) / (sigmoid(T / 2) - sigmoid(-T / 2))

    rounding        in training                                in eval mode
    nearest         round(v), gradient 1                       round(v)
    stochastic      round(v + T (u - 1/2)), u uniform          round(v)        gradient 1       Gupta et al. 2015
    hard            round(v), gradient c'(f)                   round(v)                         DSQ, Gong et al. 2019
    soft            floor(v) + c(f), gradient c'(f)            round(v)                         Yang et al. 2019, eq. 3 to 6
    toward_zero     sign(v) floor(|v|), gradient 1             the same                         A2Q, Colbert et al. 2023

Codes are clamped to the grid as in `graphopt.formats.uniform`. In eval mode, `toward_zero` aside, the answer is that of
`graphopt::fake_quantize` to the last bit. DSQ's tanh of a step is the same curve: tanh(k u) = 2 sigmoid(2 k u) - 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.formats.protocol import broadcast
from graphopt.ir.ops import OpInfo, register

ROUNDINGS = ("nearest", "stochastic", "hard", "soft", "toward_zero")
NEARLY = 1e-3  # of a step: a weight that lies on the grid but for rounding errors keeps its code towards zero


@torch.library.custom_op("graphopt::quantize_in_training", mutates_args=())
def quantize_in_training(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    axis: int,
    rounding: str,
    sharpness: Tensor,
    clipped_only: bool,
    training: bool,
) -> Tensor:
    """Round x; see the head of this file.

    Args:
        x: float tensor of any shape.
        scale: float32, [] or [channels]. zero_point: float32, of the same shape or [], rounded where it is used.
        axis: the dimension that channels lie along; -1: one grid.
        rounding: one of `ROUNDINGS`.
        sharpness: T, float32 []; with `stochastic`, 1 decides about the whole step by chance.
        clipped_only: elements within the grid have no gradient for the scale (PACT, Choi et al. 2018, eq. 3).
        training: whether rounding is that of training.
    """
    s, z = _grid(x, scale, zero_point, quant_min, quant_max, axis)
    v = x / s
    codes = (_rounded(v, rounding, float(sharpness), training) + z).clamp_(quant_min, quant_max)
    return (codes - z) * s


@quantize_in_training.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.low, ctx.high, ctx.axis, ctx.rounding, sharpness, ctx.clipped_only, ctx.training = inputs
    ctx.save_for_backward(x, scale, zero_point, sharpness, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, scale, zero_point, sharpness, y = ctx.saved_tensors
    s, z = _grid(x, scale, zero_point, ctx.low, ctx.high, ctx.axis)
    v = x / s
    margin = 0.0 if ctx.rounding == "soft" else 0.5  # beyond the last code that is rounded to it
    inside = (v >= ctx.low - z - margin) & (v <= ctx.high - z + margin)
    slope = inside * _slope(v, ctx.rounding, float(sharpness))
    to_scale = to_zero_point = None
    if ctx.needs_input_grad[1]:
        share = y / s - slope * v
        if ctx.clipped_only:
            share = torch.where(inside, 0.0, share)
        count = max(1.0, x.numel() / scale.numel())
        to_scale = _along(gradient * share, scale, s) / (count * max(ctx.high, 1)) ** 0.5
    if ctx.needs_input_grad[2]:  # LSQ+, Bhalgat et al. 2020, eq. 6: beyond the ends, the grid moves with its offset
        count = max(1.0, x.numel() / zero_point.numel())
        moved = torch.where(inside, 0.0, -gradient * s)
        to_zero_point = (
            _along(moved, zero_point, broadcast(zero_point, x, ctx.axis)) / (count * max(ctx.high, 1)) ** 0.5
        )
    return gradient * slope, to_scale, to_zero_point, *[None] * 7


quantize_in_training.register_autograd(_backward, setup_context=_setup)
quantize_in_training.register_autocast("cpu", torch.float32)

QUANTIZE_IN_TRAINING: Any = torch.ops.graphopt.quantize_in_training.default
register(QUANTIZE_IN_TRAINING, OpInfo(None, training_flag="training"))


def _grid(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> tuple[Tensor, Tensor]:
    return broadcast(scale, x, axis), broadcast(zero_point.round().clamp(low, high), x, axis)


def _along(each: Tensor, parameter: Tensor, as_met: Tensor) -> Tensor:
    return each.sum_to_size(as_met.shape).reshape(parameter.shape)


def _rounded(v: Tensor, rounding: str, sharpness: float, training: bool) -> Tensor:
    if rounding == "toward_zero":
        return v.sign() * (v.abs() + NEARLY).floor()
    if training and rounding == "stochastic":
        return (v + sharpness * (torch.rand_like(v) - 0.5)).round_()
    if training and rounding == "soft":
        base = v.floor()
        end = _sigmoid(sharpness / 2)
        return base + (torch.sigmoid(sharpness * (v - base - 0.5)) - (1 - end)) / (2 * end - 1)
    return v.round()


def _slope(v: Tensor, rounding: str, sharpness: float) -> Tensor | float:
    if rounding not in ("hard", "soft"):
        return 1.0
    rise = torch.sigmoid(sharpness * (v - v.floor() - 0.5))
    return sharpness * rise * (1 - rise) / (2 * _sigmoid(sharpness / 2) - 1)


def _sigmoid(x: float) -> float:
    return float(torch.sigmoid(torch.tensor(x, dtype=torch.float64)))

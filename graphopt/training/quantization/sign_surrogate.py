"""The quantizer that training puts in the place of one that rounds to signs: the same answers, and a gradient.

    y = +above * scale where x >= threshold, -below * scale where x <= -threshold, else 0       above, below: rounded, 1 to 127

With u = x / unit, and the scale that y has, dy/dx = scale / unit * g(u):

    gradient      g(u)
    straight      1                                                        BinaryConnect, Courbariaux et al. 2015
    clipped       1 where |u| <= 1                                         BinaryNet, Hubara et al. 2016, eq. 4
    polynomial    max(2 - 2|u|, 0)                                         Bi-Real Net, Liu et al. 2018, section 3.2
    tanh          k t (1 - tanh(t u)^2), k = max(1 / t, 1), t: sharpness   IR-Net, Qin et al. 2020, eq. 11 to 13
    scaled        1, times above or below where y is one of them           TTQ, Zhu et al. 2017, eq. 8

`scale`, `above` and `below` have the gradients of what is rounded to them. With chance (binary alone), training rounds up with
the probability clamp((x / scale + 1) / 2, 0, 1); eval mode never does (Courbariaux et al. 2015, eq. 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.formats.protocol import broadcast
from graphopt.formats.signs import LARGEST, multiples
from graphopt.ir.ops import OpInfo, register

GRADIENTS = ("straight", "clipped", "polynomial", "tanh", "scaled")


@torch.library.custom_op("graphopt::signs_in_training", mutates_args=())
def signs_in_training(
    x: Tensor,
    scale: Tensor,
    threshold: Tensor,
    below: Tensor,
    above: Tensor,
    unit: Tensor,
    sharpness: Tensor,
    axis: int,
    gradient: str,
    chance: bool,
    training: bool,
) -> Tensor:
    """Round x; see the head of this file.

    Args:
        x: float tensor of any shape.
        scale, threshold, below, above, unit: float32, each [] or [channels].
        sharpness: t, float32 [].
        axis: the dimension that channels lie along; -1: there are none.
        gradient: one of `GRADIENTS`.
        chance: whether training rounds by chance. training: whether this is training.
    """
    if chance and training:
        up = (x / broadcast(scale, x, axis) + 1) / 2
        codes = torch.where(torch.rand_like(x) < up, 1.0, -1.0)
    else:
        codes = multiples(x, (scale, threshold, *_ends(below, above)), axis).to(x.dtype)
    return codes * broadcast(scale, x, axis)


@signs_in_training.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.axis, ctx.gradient, _, _ = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, scale, _, below, above, unit, sharpness, y = ctx.saved_tensors
    s, step = broadcast(scale, x, ctx.axis), broadcast(unit, x, ctx.axis)
    to_x = gradient * _slope(x / step, ctx.gradient, float(sharpness)).mul_(s / step)
    if ctx.gradient == "scaled":
        high, low = (broadcast(end, x, ctx.axis) for end in (above, below))
        to_x = to_x * torch.where(y > 0, high, torch.where(y < 0, low, 1.0 / s))
    to_scale, to_below, to_above = (
        _along(share, parameter, x, ctx.axis) if needed else None
        for needed, parameter, share in (
            (ctx.needs_input_grad[1], scale, gradient * y / s),
            (ctx.needs_input_grad[3], below, gradient * -s * (y < 0)),
            (ctx.needs_input_grad[4], above, gradient * s * (y > 0)),
        )
    )
    return to_x, to_scale, None, to_below, to_above, *[None] * 6


signs_in_training.register_autograd(_backward, setup_context=_setup)
signs_in_training.register_autocast("cpu", torch.float32)

SIGNS_IN_TRAINING: Any = torch.ops.graphopt.signs_in_training.default
register(SIGNS_IN_TRAINING, OpInfo(None, training_flag="training"))


def _ends(below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """As whole numbers."""
    low, high = (end.round().clamp(1, LARGEST).int() for end in (below, above))
    return low, high


def _along(share: Tensor, parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    return share.sum_to_size(broadcast(parameter, x, axis).shape).reshape(parameter.shape)


def _slope(u: Tensor, gradient: str, sharpness: float) -> Tensor:
    if gradient == "clipped":
        return (u.abs() <= 1).to(u.dtype)
    if gradient == "polynomial":
        return (2 - 2 * u.abs()).clamp_(min=0)
    if gradient == "tanh":
        return max(sharpness, 1.0) * (1 - torch.tanh(sharpness * u).square())
    return torch.ones_like(u)

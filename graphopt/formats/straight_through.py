"""Rounding to uniform grids, and its gradients: straight through where a number lies on the grid (Bengio et al. 2013), and for
the scale that of Esser et al. 2020, section 2.1. Where there is one grid, in pieces (`graphopt.formats.pieces`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.formats import pieces
from graphopt.formats.protocol import blocks_of, broadcast
from graphopt.formats.uniform import dequantize, quantize
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

WIDE = 2**24  # codes that float32 does not tell apart


def rounded(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int, block: int = 0) -> Tensor:
    """x on the grid; arguments as those of `graphopt::fake_quantize`."""
    if high - low < WIDE and pieces.fits(x, scale, zero_point, axis):
        return pieces.rounded(x, scale, zero_point, low, high)
    codes = quantize(x, scale, zero_point, low, high, axis, block)
    return dequantize(codes, scale, zero_point, axis, block).to(x.dtype)


def gradients(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    axis: int,
    block: int = 0,
    *,
    of_scale: bool,
    positive: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of x and, where it is wanted, of the scale, normalised as in LSQ for steady step sizes.

    Args:
        gradient: of y = rounded(x).
        positive: y is rounded(relu(x)) instead, in pieces, on a grid that begins with zero.
    """
    norm = (max(1.0, x.numel() / max(1, scale.numel())) * high) ** 0.5
    if high - low < WIDE and pieces.fits(x, scale, zero_point, axis):
        to_x, to_scale = pieces.gradients(gradient, x, y, scale, zero_point, low, high, of_scale, positive=positive)
        return to_x, None if to_scale is None else to_scale / norm
    s, z = broadcast(scale, x, axis, block), broadcast(zero_point, x, axis, block)
    position = x / s
    nearest = position.round()
    slope = nearest.clamp(low - z, high - z)
    inside = slope == nearest
    to_x = torch.where(inside, gradient, 0.0)
    if not of_scale:
        return to_x, None
    # d x^/d scale: round(x / s) - x / s inside, the clamped code outside
    slope.sub_(position.mul_(inside)).mul_(gradient)
    if block:
        to_scale = torch.zeros_like(scale).index_add_(axis, blocks_of(x.shape[axis], block).to(x.device), slope)
    else:
        to_scale = slope.sum_to_size(s.shape).reshape(scale.shape)
    return to_x, to_scale / norm

"""Functions of normally distributed values: clips in closed form, the largest of several, any other by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

POINTS = torch.linspace(-6, 6, 241, dtype=torch.float64)  # of N(0, 1), for numerical integrals
WEIGHTS = torch.exp(-(POINTS**2) / 2) / torch.exp(-(POINTS**2) / 2).sum()


def clipped_normal(mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of min(max(x, low), high), x normal; ends may be infinite. Shapes broadcast; float64."""
    mean, deviation, low, high = torch.broadcast_tensors(mean, deviation, low, high)  # type: ignore[no-untyped-call]
    # measured from the mean in deviations: no cancellation for narrow channels far from zero
    spread = deviation.clamp(min=1e-30)
    u, v = ((end - mean) / spread for end in (low, high))
    below, above = torch.special.ndtr(u), torch.special.ndtr(-v)
    inside = (1 - below - above).clamp(min=0)
    density = [torch.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) for end in (u, v)]
    (left, right), (du, dv) = ((torch.where(t.isinf(), 0.0, t) for t in (u, v)), density)
    first = du - dv + left * below + right * above
    second = inside + left * du - right * dv + left**2 * below + right**2 * above
    certain = deviation <= 1e-30
    expected = torch.where(certain, torch.minimum(torch.maximum(mean, low), high), mean + spread * first)
    variance = torch.where(certain, 0.0, (spread**2 * (second - first**2)).clamp(min=0))
    return expected, variance


def expected_maximum(count: int) -> float:
    """E[the largest of so many independent values of N(0, 1)]."""
    at = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    below = torch.special.ndtr(at) ** count
    return float((at[1:] + at[:-1]).div(2) @ below.diff())


def moments_of(function: Callable[[Tensor], Tensor], mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of an elementwise function of normal values."""
    first, square = torch.zeros_like(mean), torch.zeros_like(mean)
    for point, weight in zip(POINTS.tolist(), WEIGHTS.tolist(), strict=True):
        found = function(mean + point * deviation)
        first, square = first + weight * found, square + weight * found**2
    return first, (square - first**2).clamp(min=0)


def once_where_equal(function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> list[Tensor]:
    """An elementwise function, computed once along dimensions in which no argument changes."""
    values = torch.broadcast_tensors(*values)  # type: ignore[no-untyped-call]
    shape = values[0].shape
    alike = [d for d in range(len(shape)) if all(v.stride(d) == 0 for v in values)]
    for d in alike:
        values = tuple(v.narrow(d, 0, 1) for v in values)
    return [found.expand(shape) for found in function(*values)]

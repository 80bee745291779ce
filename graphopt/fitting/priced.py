"""Codes of a layer's weights that cost few bits, chosen one column after another under the quadratic of the layer's inputs.

    minimize    tr (W^ - W) H (W^ - W)^T  +  sum of price[code]         W: [g, out, d]   H = E[x x^T]: [g, d, d]

Each column is rounded, and what that loses is moved into the columns still to come, as `rounding.sequential` does. Rounding
column j to a level l adds (w_j - l)^2 / U_jj^2 to the error (U^T U = H^-1), so of the levels next to w_j and of zero the one with
the least error plus price is taken. A code's price is the slope times its bits, - log2 of its share, found anew from the codes
after each turn: an entropy coder then takes as many.

At a step D of a uniform grid and many levels, an error D^2/12 falls to a quarter with each bit: the slope of that curve,
2 ln 2 D^2/12, trades bits for error at the same rate as the step itself does.

Papers: Frantar et al. 2022, "GPTQ"; Wiedemann et al. 2020, "DeepCABAC", section III (rate and distortion); Choi et al.
        2017, "Towards the Limit of Network Quantization" (uniform levels and an entropy coder).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.fitting.rounding import Levels, cost, feedback, sequential

TURNS = 3
STRIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
GROWTH, ROUNDS = 1.4, 8  # of the slope, until the error is reached
SLOPE = 2 * math.log(2) / 12  # of squared steps per bit


@dataclass(frozen=True)
class Table:
    """Levels of a table, float64 ascending [n], the same for all weights of a layer."""

    values: Tensor

    @property
    def low(self) -> int:
        return 0

    @property
    def high(self) -> int:
        return len(self.values) - 1

    def codes(self, weight: Tensor, first: int = 0) -> Tensor:
        """The nearest, in the weight's type."""
        middles = (self.values[1:] + self.values[:-1]) / 2
        return torch.searchsorted(middles, weight.contiguous()).to(weight.dtype)

    def weight(self, codes: Tensor, first: int = 0) -> Tensor:
        return self.values[codes.long()]


def bits(codes: Tensor, levels: Levels) -> Tensor:
    """Bits of each code, - log2 of its share, [high - low + 1]; one that does not occur counts as half an occurrence."""
    counts = torch.bincount((codes.long() - levels.low).flatten(), minlength=levels.high - levels.low + 1).double()
    return -(counts.clamp(min=0.5) / codes.numel()).log2()


def entropy(codes: Tensor) -> float:
    """Bits of all codes together."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def choose(
    weight: Tensor,
    metric: Tensor,
    levels: Levels,
    slope: float,
    *,
    held: Tensor | None = None,
) -> Tensor:
    """Codes [g, out, d].

    Args:
        weight: [g, out, d], float64; metric: [g, d, d], positive definite.
        slope: what a bit may cost in error, in squared weights: multiplied with the mean 1 / U_jj^2, which weighs them.
        held: weights that are zero and stay so, bool [g, out, d].
    """
    factor = feedback(metric)
    codes = levels.codes(weight)
    for _ in range(TURNS if slope else 1):
        codes = _sequential(weight, factor, levels, slope * _gain(factor) * bits(codes, levels), held)
    return codes


def fewest_bits(
    weight: Tensor, metric: Tensor, levels: Levels, slope: float, most: float, *, held: Tensor | None = None
) -> Tensor:
    """Codes [g, out, d] of the fewest bits found whose error, the trace at the head of this file, is at most `most`.

    The largest stride that keeps it is looked for, codes being multiples of it from zero's on; then the slope grows as far as the
    error allows. Where not even single codes keep it, they are returned.

    Args:
        slope: at which bits trade for error as the grid's own step does.
        held: as of `choose`.
    """
    factor = feedback(metric)
    best, chosen = levels.codes(weight), 1
    for stride in STRIDES:
        found = _at_stride(best, weight, factor, levels, slope, stride, held)
        if stride > 1 and float(cost(weight, metric, levels.weight(found)).sum()) > most:
            break
        best, chosen = found, stride
    for turn in range(1, ROUNDS):
        found = _at_stride(best, weight, factor, levels, slope * GROWTH**turn, chosen, held)
        if float(cost(weight, metric, levels.weight(found)).sum()) > most:
            break
        best = found
    return best


def _at_stride(
    start: Tensor,
    weight: Tensor,
    factor: tuple[Tensor, Tensor],
    levels: Levels,
    slope: float,
    stride: int,
    held: Tensor | None,
) -> Tensor:
    """Codes that are multiples of a stride, at prices of those that `start` makes such."""
    zero = levels.codes(torch.zeros_like(weight))
    price = slope * stride**2 * _gain(factor) * bits(_strided(start, zero, levels, stride), levels)
    return _sequential(weight, factor, levels, price, held, stride)


def _strided(codes: Tensor, zero: Tensor, levels: Levels, stride: int) -> Tensor:
    """The nearest multiples of a stride, from zero's code on, within the ends."""
    if stride == 1:
        return codes
    steps = torch.round((codes - zero) / stride)
    least, most = torch.ceil((levels.low - zero) / stride), torch.floor((levels.high - zero) / stride)
    return zero + stride * torch.minimum(torch.maximum(steps, least), most)


def _gain(factor: tuple[Tensor, Tensor]) -> Tensor:
    return factor[1].diagonal(dim1=1, dim2=2).pow(-2).mean()


def _sequential(
    weight: Tensor,
    factor: tuple[Tensor, Tensor],
    levels: Levels,
    price: Tensor,
    held: Tensor | None,
    stride: int = 1,
) -> Tensor:
    def choose(column: Tensor, root: Tensor, place: int) -> Tensor:
        here = None if held is None else held[..., place, None]
        return _cheapest(column, levels, price, root, place, here, stride)

    return sequential(weight, factor, levels, choose)


def _cheapest(
    column: Tensor,
    levels: Levels,
    price: Tensor,
    root: Tensor,
    place: int,
    held: Tensor | None,
    stride: int,
) -> Tensor:
    """Of the levels next to a column [g, out, 1] and of zero, those of least error and price."""
    near, zero = levels.codes(column, place), levels.codes(torch.zeros_like(column), place)
    near = _strided(near, zero, levels, stride)
    beside = [_strided(near + step, zero, levels, stride) for step in (-stride, stride)]
    ends = torch.cat([near, *beside], -1).clamp(levels.low, levels.high)
    tried = torch.cat([ends, zero], -1)
    values = torch.cat([levels.weight(tried[..., n : n + 1], place) for n in range(tried.shape[-1])], -1)
    cost = ((column - values) / root).square() + price[(tried - levels.low).long()]
    found = tried.gather(-1, cost.argmin(-1, keepdim=True))
    return found if held is None else torch.where(held, zero, found)

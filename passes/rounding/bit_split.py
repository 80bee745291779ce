"""Codes digit by digit: an integer is split into signed digits, and each digit of all weights is optimized in turn.

    code - zero  =  sum over m of 2^m t_m        t_m in {-1, 0, 1},    m = 0 ... bits - 2

With the other digits and the scale s fixed, the best t_m of column j, while all other columns stay, is the nearest of three:

    t_mj  =  clamp(round((k*_j - k_j) / 2^m + t_mj), -1, 1)       k* = k - [(W^ - W) H]_j / (H_jj s)        k = code - zero

where W, H and the objective are those of `graphopt.fitting.rounding`. Digits are taken from the most significant down; then
the scale is fitted, and so on until nothing changes.

Needs:  a symmetric lattice: zero 0, codes from -(2^(bits-1) - 1).
Paper:  Wang et al. 2020, "Towards Accurate Post-training Network Quantization via Bit-Split and Stitching", section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.fitting.rounding import Lattice, cost, rescale, shrink
from graphopt.utils.errors import InputError

ROUNDS = 8  # of all digits and the scale
SWEEPS = 3  # over the columns, per digit


def fit(weight: Tensor, metric: Tensor, lattice: Lattice, *, scales: bool) -> tuple[Tensor, Lattice]:
    """Codes and their lattice; arguments as for `graphopt.fitting.rounding.fit`.

    Raises:
        InputError: the lattice is not symmetric.
    """
    if bool((lattice.zero != 0).any()) or lattice.low != -lattice.high:
        raise InputError("bit_split needs symmetric weights: digits have signs of their own, a zero point has no place")
    if scales:
        lattice = shrink(weight, metric, lattice)
    codes = lattice.codes(weight)
    best = cost(weight, metric, lattice.weight(codes))
    for _ in range(ROUNDS):
        for digit, place in digits(codes, lattice.high):
            codes = optimize_digit(weight, metric, lattice, codes, digit, place)
        if scales:
            lattice = rescale(weight, metric, lattice, codes)
        now = cost(weight, metric, lattice.weight(codes))
        if not bool((now < best * (1 - 1e-9)).any()):
            break
        best = torch.minimum(best, now)
    return codes, lattice


def digits(codes: Tensor, high: int) -> list[tuple[Tensor, float]]:
    """Signed binary digits of whole numbers with their place values, the most significant first: sum of t * place."""
    found = []
    for m in reversed(range(high.bit_length())):
        found.append((torch.div(codes.abs(), 2**m, rounding_mode="floor").remainder(2) * codes.sign(), float(2**m)))
    return found


def optimize_digit(
    weight: Tensor, metric: Tensor, lattice: Lattice, codes: Tensor, digit: Tensor, place: float
) -> Tensor:
    """Codes with one digit at its best, column by column, all other digits as they are."""
    codes, digit = codes.clone(), digit.clone()
    slope = (lattice.weight(codes) - weight) @ metric
    for _ in range(SWEEPS):
        changed = False
        for j in range(weight.shape[-1]):
            scale = lattice.over(lattice.scale, 1, j)
            away = -slope[..., j : j + 1] / (metric[:, None, j, None, j] * scale)  # to the best code, in steps
            best = torch.round(away / place + digit[..., j : j + 1]).clamp(-1, 1)
            moved = (best - digit[..., j : j + 1]) * place
            if bool(moved.any()):
                slope += moved * scale * metric[:, None, j]
                codes[..., j] += moved[..., 0]
                digit[..., j] = best[..., 0]
                changed = True
        if not changed:
            break
    return codes

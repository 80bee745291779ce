"""Round a layer's weights one after another, each making up for the errors of those before: an exact quadratic, no gradients.

    minimize    tr (W^ - W) H (W^ - W)^T       W^ = (codes - z) s       W: [g, out, d]   H = E[x x^T]: [g, d, d]

`sequential` takes the columns in order of H_jj and moves what rounding column j loses into the columns still to come,

    e = (w_j - w^_j) / U_jj,    w_k -= e U_jk  for k > j                U^T U = H^-1, U upper triangular

`descend` then goes through the columns again until no code changes, each at its best while all others stay:

    w^_j  =  nearest code of  w^_j - [(W^ - W) H]_j / H_jj

The best scale for given codes c - z = k is a quotient, s = (k H w) / (k H k), row by row; both steps lessen the same error. Where
a row has a scale to every few columns, they are bettered one after another, the others standing.

Columns are visited in chunks, those that could be better as the chunk is met: what a column changes is carried to the rest of its
chunk at once, and to all others behind the chunk, in one matrix product. All arrays are float64 and g counts the groups of a
convolution.

Papers: Frantar et al. 2022, "GPTQ", and "Optimal Brain Compression" (the sequential step); Hubara et al. 2020, "Improving
        Post Training Neural Quantization" (the objective); Wang et al. 2020, "Bit-Split" (descent on codes and scales in turn).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

SWEEPS = 12
TURNS = 4  # of codes and scales
CHUNK = 64  # columns
SHARES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46)  # of the scale a search begins from


class Levels(Protocol):
    """What a weight may be: codes from `low` to `high`, one of which is zero's. A `Lattice` is one."""

    @property
    def low(self) -> int: ...
    @property
    def high(self) -> int: ...
    def codes(self, weight: Tensor, first: int = 0) -> Tensor: ...
    def weight(self, codes: Tensor, first: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class Lattice:
    """The weights that can be had: (codes - zero) * scale.

    Attributes:
        scale, zero: [g, out, 1]; with one scale for the whole tensor all are equal. In blocks: [g, out, blocks].
        low, high: the first and last code.
        block: columns to a scale; 0: all.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int
    block: int = 0

    def over(self, parameter: Tensor, columns: int, first: int = 0) -> Tensor:
        """A parameter as it meets `columns` of a weight, from the `first` on."""
        return parameter[..., torch.arange(first, first + columns) // self.block] if self.block else parameter

    def codes(self, weight: Tensor, first: int = 0) -> Tensor:
        """The nearest codes, of columns from `first` on."""
        scale, zero = (self.over(p, weight.shape[-1], first) for p in (self.scale, self.zero))
        return (torch.round(weight / scale) + zero).clamp(self.low, self.high)

    def weight(self, codes: Tensor, first: int = 0) -> Tensor:
        scale, zero = (self.over(p, codes.shape[-1], first) for p in (self.scale, self.zero))
        return (codes - zero) * scale

    def parts(self, columns: int) -> list[slice]:
        """The columns of each scale."""
        width = self.block or columns
        return [slice(first, min(first + width, columns)) for first in range(0, columns, width)]


def cost(weight: Tensor, metric: Tensor, rounded: Tensor) -> Tensor:
    """(w^ - w) H (w^ - w)^T of each row: [g, out]."""
    lost = rounded - weight
    return ((lost @ metric) * lost).sum(-1)


def feedback(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the columns [d], and U [g, d, d]: all that `sequential` needs of the metric."""
    order = metric.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric[:, order][:, :, order]))
    return order, torch.linalg.cholesky(inverse, upper=True)


def sequential(
    weight: Tensor,
    factor: tuple[Tensor, Tensor],
    levels: Levels,
    choose: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Codes by rounding with feedback, from `feedback(metric)`: [g, out, d].

    Args:
        choose: of a column [g, out, 1], what its errors are divided by, and its place, the codes; None: the nearest.
    """
    order, upper = factor
    left, codes, place = weight[..., order].clone(), torch.empty_like(weight), order.tolist()
    for start in range(0, weight.shape[-1], CHUNK):
        end = min(start + CHUNK, weight.shape[-1])
        errors = torch.empty_like(left[..., start:end])
        for j in range(start, end):
            column, root = left[..., j : j + 1], upper[:, j, None, j, None]
            found = levels.codes(column, place[j]) if choose is None else choose(column, root, place[j])
            codes[..., place[j]] = found[..., 0]
            error = (column - levels.weight(found, place[j])) / root
            left[..., j + 1 : end] -= error * upper[:, None, j, j + 1 : end]
            errors[..., j - start] = error[..., 0]
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return codes


def descend(weight: Tensor, metric: Tensor, lattice: Lattice, codes: Tensor) -> Tensor:
    """Codes after coordinate descent: no single one could be bettered alone (or `SWEEPS` are over)."""
    codes = codes.clone()
    slope, diagonal = (lattice.weight(codes) - weight) @ metric, metric.diagonal(dim1=1, dim2=2)
    for _ in range(SWEEPS):
        changed = False
        for start in range(0, weight.shape[-1], CHUNK):
            end = min(start + CHUNK, weight.shape[-1])
            here, moves = slope[..., start:end].clone(), torch.zeros_like(slope[..., start:end])
            now = lattice.weight(codes[..., start:end], start)
            better = lattice.codes(now - here / diagonal[:, None, start:end], start) != codes[..., start:end]
            for j in (start + better.flatten(0, 1).any(0).nonzero().flatten()).tolist():
                now = lattice.weight(codes[..., j : j + 1], j)
                best = lattice.codes(now - here[..., j - start, None] / diagonal[:, None, j, None], j)
                moved = lattice.weight(best, j) - now
                here += moved * metric[:, None, j, start:end]
                moves[..., j - start] = moved[..., 0]
                codes[..., j] = best[..., 0]
                changed = True
            if changed:
                slope += moves @ metric[:, start:end]
        if not changed:
            break
    return codes


def rescale(weight: Tensor, metric: Tensor, lattice: Lattice, codes: Tensor) -> Lattice:
    """The best scale of each row, or block, for these codes; one that would change sign or size too much stays."""
    scale, steps = lattice.scale.clone(), codes - lattice.over(lattice.zero, codes.shape[-1])
    slope = (lattice.weight(codes) - weight) @ metric
    for number, part in enumerate(lattice.parts(codes.shape[-1])):
        k, old = steps[..., part], scale[..., number, None]
        bend = ((k @ metric[:, part, part]) * k).sum(-1, keepdim=True).clamp(min=1e-30)
        share = 1 - (slope[..., part] * k).sum(-1, keepdim=True) / (bend * old)
        new = torch.where((share > 0.2) & (share < 5), share * old, old)
        slope += ((new - old) * k) @ metric[:, part]
        scale[..., number] = new[..., 0]
    return replace(lattice, scale=scale)


def shrink(weight: Tensor, metric: Tensor, lattice: Lattice) -> Lattice:
    """The best of `SHARES` of each row's, or block's, scale, for the nearest codes (of the block alone)."""
    best, scale = torch.full_like(lattice.scale, torch.inf), lattice.scale
    for share in SHARES:
        tried = replace(lattice, scale=lattice.scale * share)
        lost = tried.weight(tried.codes(weight)) - weight
        parts = [lost[..., p] for p in lattice.parts(weight.shape[-1])]
        blocks = [metric[:, p, p] for p in lattice.parts(weight.shape[-1])]
        found = torch.stack([((e @ h) * e).sum(-1) for e, h in zip(parts, blocks, strict=True)], -1)
        scale = torch.where(found < best, tried.scale, scale)
        best = torch.minimum(best, found)
    return replace(lattice, scale=scale)


def fit(weight: Tensor, metric: Tensor, lattice: Lattice, *, scales: bool) -> tuple[Tensor, Lattice]:
    """Codes and their lattice of the least cost found.

    Args:
        weight: [g, out, d]; metric: [g, d, d], positive definite.
        scales: whether the scale of each row may change.
    """
    if scales:
        lattice = shrink(weight, metric, lattice)
    starts = [sequential(weight, feedback(metric), lattice), lattice.codes(weight)]
    found = [descend(weight, metric, lattice, start) for start in starts]
    costs = [cost(weight, metric, lattice.weight(codes))[..., None] for codes in found]
    codes = torch.where(costs[0] <= costs[1], found[0], found[1])
    for _ in range(TURNS if scales else 0):
        lattice = rescale(weight, metric, lattice, codes)
        codes = descend(weight, metric, lattice, codes)
    return codes, lattice

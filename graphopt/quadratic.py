"""Round a layer's weights one after another, each making up for the errors of those before: an exact quadratic, no gradients.

    minimize    tr (W^ - W) H (W^ - W)^T       W^ = (codes - z) s       W: [g, out, d]   H = E[x x^T]: [g, d, d]

`sequential` takes the columns in order of H_jj and moves what rounding column j loses into the columns still to come,

    e = (w_j - w^_j) / U_jj,    w_k -= e U_jk  for k > j                U^T U = H^-1, U upper triangular

`descend` then goes through the columns again until no code changes, each at its best while all others stay:

    w^_j  =  nearest code of  w^_j - [(W^ - W) H]_j / H_jj

The best scale for given codes c - z = k is a quotient, s = (k H w) / (k H k), row by row; both steps lessen the same error.

All arrays are float64 and g counts the groups of a convolution.

Papers: Frantar et al. 2022, "GPTQ", and "Optimal Brain Compression" (the sequential step); Hubara et al. 2020, "Improving
        Post Training Neural Quantization" (the objective); Wang et al. 2020, "Bit-Split" (descent on codes and scales in turn).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SWEEPS = 12
TURNS = 4  # of codes and scales
SHARES = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46)  # of the scale a search begins from


@dataclass(frozen=True)
class Lattice:
    """The weights that can be had: (codes - zero) * scale.

    Attributes:
        scale, zero: [g, out, 1]; with one scale for the whole tensor all are equal.
        low, high: the first and last code.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest codes."""
        return (torch.round(weight / self.scale) + self.zero).clamp(self.low, self.high)

    def weight(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale


def cost(weight: Tensor, metric: Tensor, rounded: Tensor) -> Tensor:
    """(w^ - w) H (w^ - w)^T of each row: [g, out]."""
    lost = rounded - weight
    return ((lost @ metric) * lost).sum(-1)


def feedback(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the columns [d], and U [g, d, d]: all that `sequential` needs of the metric."""
    order = metric.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(metric[:, order][:, :, order]))
    return order, torch.linalg.cholesky(inverse, upper=True)


def sequential(weight: Tensor, factor: tuple[Tensor, Tensor], lattice: Lattice) -> Tensor:
    """Codes by rounding with feedback, from `feedback(metric)`: [g, out, d]."""
    order, upper = factor
    left, codes = weight[..., order].clone(), torch.empty_like(weight)
    for j in range(weight.shape[-1]):
        column = left[..., j : j + 1]
        found = lattice.codes(column)
        codes[..., order[j]] = found[..., 0]
        error = (column - lattice.weight(found)) / upper[:, j, None, j, None]
        left[..., j + 1 :] -= error * upper[:, None, j, j + 1 :]
    return codes


def descend(weight: Tensor, metric: Tensor, lattice: Lattice, codes: Tensor) -> Tensor:
    """Codes after coordinate descent: no single one could be bettered alone (or `SWEEPS` are over)."""
    codes = codes.clone()
    slope = (lattice.weight(codes) - weight) @ metric
    for _ in range(SWEEPS):
        changed = False
        for j in range(weight.shape[-1]):
            now = lattice.weight(codes[..., j : j + 1])
            best = lattice.codes(now - slope[..., j : j + 1] / metric[:, None, j, None, j])
            moved = lattice.weight(best) - now
            if bool(moved.any()):
                slope += moved * metric[:, None, j]
                codes[..., j] = best[..., 0]
                changed = True
        if not changed:
            break
    return codes


def rescale(weight: Tensor, metric: Tensor, lattice: Lattice, codes: Tensor) -> Lattice:
    """The best scale of each row for these codes; rows for which it would not be positive keep theirs."""
    steps = codes - lattice.zero
    towards = steps @ metric
    scale = (towards * weight).sum(-1, keepdim=True) / (towards * steps).sum(-1, keepdim=True).clamp(min=1e-30)
    usable = (scale > 0.2 * lattice.scale) & (scale < 5 * lattice.scale)
    return replace(lattice, scale=torch.where(usable, scale, lattice.scale))


def shrink(weight: Tensor, metric: Tensor, lattice: Lattice) -> Lattice:
    """The best of `SHARES` of each row's scale, for the nearest codes."""
    best, scale = torch.full_like(weight[..., :1], torch.inf), lattice.scale
    for share in SHARES:
        tried = replace(lattice, scale=lattice.scale * share)
        found = cost(weight, metric, tried.weight(tried.codes(weight)))[..., None]
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

"""How many terms a factorization keeps.

8 or (8, 16)      that many; of each rank where the method has several
0.5               the most that leave this share of the layer's multiply-accumulates
Energy(0.9)       the fewest that keep this share of sum |w|^2, by the singular values of each unfolding
EVBMF()           as many as stand out of the noise, in closed form
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from graphopt.utils.checks import check_share
from graphopt.utils.errors import InputError
from graphopt.utils.quantities import multiple_within


@dataclass(frozen=True)
class Energy:
    """`share`, over 0 and under 1, of the squared singular values to keep."""

    share: float

    def __post_init__(self) -> None:
        check_share("Energy", self.share)

    def __call__(self, unfolding: Tensor) -> int:
        energy = spectrum(unfolding).numpy() ** 2
        return 1 + int(
            np.searchsorted(energy.cumsum(), self.share * energy.sum() * (1 - 1e-12)).clip(0, len(energy) - 1)
        )


@dataclass(frozen=True)
class EVBMF:
    """The rank of a matrix under noise, by empirical variational Bayesian matrix factorization.

    An L x M matrix (L <= M) is taken as a low-rank matrix plus Gaussian noise of unknown variance. The noise is the one variable
    left to search; every singular value above a threshold given by it is kept.

    Paper:  Nakajima et al. 2013, "Global Analytic Solution of Fully-Observed Variational Bayesian Matrix Factorization", JMLR 14,
            theorem 15 and section 5.3; used for ranks by Kim et al. 2016, section 3.2.
    """

    def __call__(self, unfolding: Tensor) -> int:
        rows, columns = sorted(unfolding.shape)
        values = spectrum(unfolding).numpy()
        ratio = rows / columns
        edge = 2.5129 * math.sqrt(ratio)  # tau-underbar
        threshold = (1 + edge) * (1 + ratio / edge)
        energy = values**2
        total = float(energy.sum())
        if total == 0:
            return 1
        most = min(math.ceil(rows / (1 + ratio)) - 1, rows - 1)
        upper = total / (rows * columns)
        lower = max(float(energy[most]) / (columns * threshold), float(energy[most:].mean()) / columns)
        lower = max(lower, upper * 1e-12)
        if lower >= upper:
            variance = upper
        else:
            found = minimize_scalar(
                _free_energy, args=(energy, rows, columns, ratio, threshold), bounds=(lower, upper), method="bounded"
            )
            variance = float(found.x)
        return max(1, int((energy > columns * variance * threshold).sum()))


def _free_energy(
    variance: float, energy: npt.NDArray[np.float64], rows: int, columns: int, ratio: float, threshold: float
) -> float:
    """What the noise variance is chosen by: equation (62)."""
    x = energy / (columns * variance)
    signal, noise = x[x > threshold], x[x <= threshold]
    tau = 0.5 * (signal - (1 + ratio) + np.sqrt((signal - (1 + ratio)) ** 2 - 4 * ratio))
    value = (noise - np.log(np.maximum(noise, 1e-300))).sum() + (signal - tau).sum()
    value += np.log((tau + 1) / signal).sum() + ratio * np.log(tau / ratio + 1).sum()
    return float(value + (rows - len(x)) * np.log(variance))


LARGE = 1024  # the smaller side from which on singular values come from the eigenvalues of the product with itself


def spectrum(matrix: Tensor) -> Tensor:
    """Singular values, falling: float64 [min(m, n)]."""
    matrix = matrix.double()
    if min(matrix.shape) < LARGE:
        values: Tensor = torch.linalg.svdvals(matrix)
        return values
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares: Tensor = torch.linalg.eigvalsh(short @ short.T)
    return squares.clamp(min=0).flip(0).sqrt()


def left_basis(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors: [m, rank]."""
    basis: Tensor
    if matrix.shape[0] <= matrix.shape[1]:
        basis = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)
    elif matrix.shape[1] < LARGE:
        basis = torch.linalg.svd(matrix, full_matrices=False)[0]
    else:
        squares, right = torch.linalg.eigh(matrix.T @ matrix)
        squares = squares.clamp(min=1e-14 * float(squares.max()))
        basis = (matrix @ right / squares.sqrt()).flip(1)
    return basis[:, :rank]


Rank: TypeAlias = int | tuple[int, ...] | float | Energy | EVBMF


def check_rank(name: str, rank: object) -> None:
    """Raise `ValueError` where a rank is none of what a rank may be."""
    whole = rank if isinstance(rank, tuple) else (rank,)
    if whole and all(isinstance(r, int) and not isinstance(r, bool) for r in whole):
        if min(whole) < 1:
            raise InputError(f"{name} must be at least 1, got {rank!r}")
    elif isinstance(rank, float):
        if not 0 < rank < 1:
            raise InputError(
                f"{name} must be a whole number, or a share of the multiply-accumulates over 0 and under 1, got {rank!r}"
            )
    elif not isinstance(rank, (Energy, EVBMF)):
        raise InputError(
            f"{name} must be a whole number, a share over 0 and under 1, Energy(...) or EVBMF(), got {rank!r}"
        )


def rounded(rank: int, full: int, multiple: int) -> int:
    """The multiple nearest to a rank, at least one of it; no more than `full`. Small ranks: see `multiple_within`."""
    multiple = multiple_within(multiple, full)
    return min(full, max(multiple, multiple * round(rank / multiple))) if multiple > 1 else min(full, rank)

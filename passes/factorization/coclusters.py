"""Rows and columns of a matrix in groups of equal size, so that much of its mass lies where rows meet columns of their group.

1. Spectral co-clustering: with A the masses, D1 and D2 their sums by row and by column, rows and columns are points by the
   singular vectors 2 .. l + 1 of D1^-1/2 A D2^-1/2, l = log2 of the number of groups, and points near each other are in one group
   (k-means).
2. Groups of equal size: those who lose most by their second choice choose first.
3. In turn, rows choose by the mass that they have in each group's columns, and columns by that in its rows, as long as the mass
   in the groups grows.

Paper:  Dhillon 2001, "Co-clustering Documents and Words Using Bipartite Spectral Graph Partitioning", section 4.2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

TURNS = 20
STARTS = 3  # of k-means


def coclusters(mass: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The orders of rows and columns, int64, in which `count` blocks on the diagonal hold much of the mass.

    Args:
        mass: [rows, columns], none negative; `count` divides both.
    """
    mass = mass.double()
    found = [_refined(mass, _spectral(mass, count, seed + start), count) for start in range(STARTS)]
    rows, columns = max(found, key=lambda labels: _held(mass, *labels))
    return torch.argsort(rows, stable=True), torch.argsort(columns, stable=True)


def _spectral(mass: Tensor, count: int, seed: int) -> Tensor:
    """The group of each column, of any sizes at first, then of equal ones."""
    left, right = (mass.sum(dim).clamp(min=1e-30).rsqrt() for dim in (1, 0))
    u, _, v = torch.linalg.svd(left[:, None] * mass * right, full_matrices=False)
    size = min(max(1, math.ceil(math.log2(count))), v.shape[0] - 1) if v.shape[0] > 1 else 0
    points = torch.cat([left[:, None] * u[:, 1 : size + 1], right[:, None] * v[1 : size + 1].T]).numpy()
    if not size or not np.ptp(points):
        return torch.arange(mass.shape[1]) // (mass.shape[1] // count)
    centres, _ = kmeans2(points, count, minit="++", rng=seed)
    distances = torch.cdist(torch.from_numpy(points[mass.shape[0] :]), torch.from_numpy(centres))
    return balanced(-distances)


def _refined(mass: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Groups of rows and of columns, each chosen by the others, as long as that gains."""

    def groups(labels: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(labels, count).to(mass.dtype)

    rows, held = balanced(mass @ groups(columns)), -1.0
    for _ in range(TURNS):
        now = _held(mass, rows, columns)
        if now <= held * (1 + 1e-9):
            break
        held, kept = now, (rows, columns)
        columns = balanced(mass.T @ groups(rows))
        rows = balanced(mass @ groups(columns))
    return kept


def _held(mass: Tensor, rows: Tensor, columns: Tensor) -> float:
    return float(mass[rows[:, None] == columns].sum())


def balanced(gains: Tensor) -> Tensor:
    """A group for each, int64 [n], of the gains it has by each, [n, groups]; all groups have the same size."""
    count, groups = gains.shape
    best = gains.topk(min(2, groups), dim=1).values
    order = torch.argsort(best[:, 0] - best[:, -1], descending=True, stable=True).tolist()
    choices, room, labels = (
        gains.argsort(dim=1, descending=True, stable=True).tolist(),
        [count // groups] * groups,
        [0] * count,
    )
    for each in order:
        chosen = next(group for group in choices[each] if room[group])
        room[chosen] -= 1
        labels[each] = chosen
    return torch.tensor(labels)

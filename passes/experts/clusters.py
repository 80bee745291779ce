"""Balanced k-means: points in groups of one size, so that every expert has as many neurons.

Lloyd's iterations, in which points are assigned to places of clusters, so many for each, at the least sum of squared distances:
an assignment problem. Malinen and Fränti 2014, "Balanced k-Means for Clustering".
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ITERATIONS = 10


def balanced(points: Tensor, groups: int, *, seed: int = 0) -> Tensor:
    """The group of each point, int64 [N], each of N / groups points.

    Args:
        points: [N, D], N a multiple of `groups`.
    """
    count, size = len(points), len(points) // groups
    generator = torch.Generator().manual_seed(seed)
    points = points.double()
    centers = points[torch.randperm(count, generator=generator)[:groups]].clone()
    found = torch.full((count,), -1)
    for _ in range(ITERATIONS):
        distances = torch.cdist(points, centers).square()
        _, places = linear_sum_assignment(distances.repeat_interleave(size, 1).numpy())
        assigned = torch.from_numpy(places) // size
        if torch.equal(assigned, found):
            break
        found = assigned
        centers = torch.stack([points[found == group].mean(0) for group in range(groups)])
    return found

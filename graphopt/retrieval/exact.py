"""Exact search among features: every distance, in float32, what approximate searches are measured against.

euclidean   |q - x|^2 = |q|^2 - 2 q x + |x|^2
cosine      1 - q x / (|q| |x|)
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from graphopt.retrieval.selection import Found, check_k, nearest
from graphopt.utils.errors import InputError, alternatives

Metric = Literal["euclidean", "cosine"]
BLOCK = 2**16  # entries that are compared at once
QUERIES = 64  # likewise


class FloatIndex:
    """Features to search in.

    Args:
        features: float [N, width], finite.
        metric: `euclidean` or `cosine`.

    Raises:
        InputError: features are no finite matrix, or the metric is unknown.
    """

    def __init__(self, features: npt.ArrayLike, metric: Metric = "euclidean") -> None:
        if metric not in get_args(Metric):
            raise InputError(f"unknown metric {metric!r}; {alternatives(metric, get_args(Metric), 'metrics')}")
        self.metric = metric
        self.features = self._prepared(features)
        self.squares = np.einsum("nd,nd->n", self.features, self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def bytes(self) -> int:
        """Of what is stored of the features."""
        return int(self.features.nbytes)

    def search(self, queries: npt.ArrayLike, k: int) -> Found:
        """The k nearest of each query, nearest first.

        Args:
            queries: [Q, width].

        Returns:
            Distances, float32 [Q, k], and places in `features`, int64 [Q, k].
        """
        check_k(k, len(self))
        asked = self._prepared(queries)
        if asked.shape[1] != self.features.shape[1]:
            raise InputError(f"queries have {asked.shape[1]} features, the index has {self.features.shape[1]}")
        found = [self._some(asked[first : first + QUERIES], k) for first in range(0, len(asked), QUERIES)]
        if not found:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        distances, places = (np.concatenate(part) for part in zip(*found, strict=True))
        return distances, places

    def _some(self, asked: npt.NDArray[np.float32], k: int) -> Found:
        best: list[Found] = [(np.zeros(0, np.float32), np.zeros(0, np.int64))] * len(asked)
        lengths = np.einsum("qd,qd->q", asked, asked)
        for first in range(0, len(self), BLOCK):
            part = slice(first, first + BLOCK)
            apart = asked @ self.features[part].T
            apart *= -2
            apart += self.squares[part]
            for number, row in enumerate(apart):
                near = np.argpartition(row, k - 1)[:k] if k < len(row) else np.arange(len(row))
                near.sort()
                known, places = best[number]
                best[number] = nearest(np.append(known, row[near]), np.append(places, near + first), k)
        distances = np.stack([d for d, _ in best]) + lengths[:, None]
        scale = 0.5 if self.metric == "cosine" else 1.0  # of unit vectors, |q - x|^2 = 2 (1 - q x)
        return np.maximum(distances * np.float32(scale), 0), np.stack([p for _, p in best])

    def _prepared(self, features: npt.ArrayLike) -> npt.NDArray[np.float32]:
        found: npt.NDArray[Any] = np.ascontiguousarray(features, np.float32)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise InputError(f"features must be a matrix of finite numbers, got one of shape {found.shape}")
        if self.metric == "cosine":
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
        return found

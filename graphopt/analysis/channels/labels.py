"""Labels of tensor indices, and what holds between them: ties, factors, pins.

Every index along a dimension carries a *set* of labels, and goes away when any label of its set is removed:

    tie       two dimensions meet index by index (a sum): their sets are equal from then on
    factor    a dimension of 768 is split into 12 x 64: what was one label per index becomes a set of two, one of its row
              (a head) and one of its column (a position in each head), so that every removal leaves a rectangle
    pin       a label met something that cannot follow (the model's output, an operator nobody knows): it stays

Sets are kept as columns: a list of arrays [size], where index i carries `{column[i] for column in columns}` and `NONE` fills
up. No columns: the dimension is fixed. Ties are kept in a forest of parents (union-find), factors as the parts of a root.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Columns = list[Array]
NONE = -1


class Labels:
    """All labels of one analysis."""

    def __init__(self) -> None:
        self._parent: Array = np.arange(1024, dtype=np.int64)
        self._count = 0
        self._parts: dict[int, tuple[int, ...]] = {}  # root -> the labels it stands for
        self._pins: list[tuple[Array, str]] = []

    def fresh(self, size: int) -> Array:
        """`size` new labels."""
        start, self._count = self._count, self._count + size
        if self._count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), 2 * self._count, dtype=np.int64)])
        return np.arange(start, self._count, dtype=np.int64)

    # ---- Reading ----------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many labels there are; each is smaller."""
        return self._count

    def roots(self, labels: Array) -> Array:
        """The representative of each label; `NONE` stays."""
        found = np.where(labels == NONE, 0, labels)
        while not np.array_equal(above := self._parent[found], found):
            found = above
        return np.where(labels == NONE, NONE, found)

    def resolve(self, columns: Columns) -> Columns:
        """The columns in terms of labels that were not factored, representatives all, without repetition."""
        done: Columns = []
        for column in columns:
            for leaf in self._leaves(self.roots(column)):
                if (leaf != NONE).any() and not any(np.array_equal(leaf, other) for other in done):
                    done.append(leaf)
        return done

    def _leaves(self, column: Array) -> Columns:
        composite = {int(label) for label in np.unique(column) if label in self._parts} if self._parts else set()
        if not composite:
            return [column]
        width = max(len(self._parts[label]) for label in composite)
        kinds, inverse = np.unique(column, return_inverse=True)
        table = np.full((width, len(kinds)), NONE, dtype=np.int64)
        for number, label in enumerate(kinds.tolist()):
            parts = self._parts.get(label, (label,))
            table[: len(parts), number] = parts
        return [leaf for row in table for leaf in self._leaves(self.roots(row[inverse]))]

    def pinned(self) -> dict[int, str]:
        """Representatives that must stay, and why (the first reason met)."""
        found: dict[int, str] = {}
        for labels, reason in self._pins:
            for column in self.resolve([labels]):
                for label in np.unique(column[column != NONE]).tolist():
                    found.setdefault(label, reason)
        return found

    # ---- What holds -------------------------------------------------------------------------------------------------

    def pin(self, columns: Columns, reason: str) -> None:
        self._pins += [(column, reason) for column in columns]

    def tie(self, one: Columns, other: Columns, reason: str) -> None:
        """Two dimensions of one size meet index by index. `reason` is given where one of them has to stay for it."""
        one, other = self.resolve(one), self.resolve(other)
        if not one or not other:
            self.pin(one + other, reason)
            return
        present = np.stack([column != NONE for column in one + other])
        if present.all():
            self._tie_sets(one, other, reason)
            return
        for pattern in np.unique(present, axis=1).T:  # indices whose sets have the same sizes, one kind at a time
            where = (present == pattern[:, None]).all(0)
            left = [c[where] for c, has in zip(one, pattern[: len(one)], strict=True) if has]
            right = [c[where] for c, has in zip(other, pattern[len(one) :], strict=True) if has]
            self.tie(left, right, reason)

    def _tie_sets(self, left: Columns, right: Columns, reason: str) -> None:
        if len(left) == len(right):
            # which column of one side is which of the other: the assignment that makes the fewest labels equal
            best = min(permutations(right), key=lambda order: sum(map(_merged, left, order)))
            for a, b in zip(left, best, strict=True):
                self._union(a, b)
        elif len(left) == 1 and right:
            self._define(left[0], right, reason)
        elif len(right) == 1 and left:
            self._define(right[0], left, reason)
        else:
            self.pin(left + right, reason)

    def factor(self, grid: Array) -> Columns:
        """Single labels that lie over a grid become sets: one label for the index along each dimension of the grid.

        Args:
            grid: representatives, [n0, n1, ...], all dimensions longer than one.

        Returns:
            One column per dimension, [n0], [n1], ...
        """
        kinds, first, inverse = np.unique(grid, return_index=True, return_inverse=True)
        axes = [self.fresh(size) for size in grid.shape]
        positions = np.unravel_index(np.arange(grid.size), grid.shape)
        origins = np.unravel_index(first, grid.shape)
        for axis, position, origin in zip(axes, positions, origins, strict=True):
            self._union(axis[position], axis[origin][inverse.reshape(-1)])  # one label twice in the grid: the same set
        for number, label in enumerate(kinds.tolist()):
            self._parts[label] = tuple(int(axis[origin[number]]) for axis, origin in zip(axes, origins, strict=True))
        return axes

    def _define(self, single: Array, columns: Columns, reason: str) -> None:
        """Each single label stands for the set at its index."""
        if np.isin(single, np.concatenate(columns)).any():  # a set that contains itself
            self.pin([single, *columns], reason)
            return
        kinds, first, inverse = np.unique(single, return_index=True, return_inverse=True)
        for column in columns:
            self._union(column, column[first][inverse])
        for number, label in enumerate(kinds.tolist()):
            self._parts[label] = tuple(int(column[first[number]]) for column in columns)

    def _union(self, one: Array, other: Array) -> None:
        for a, b in {(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True) if a != b}:
            low, high = sorted((self._find(a), self._find(b)))
            if low != high:
                self._parent[high] = low

    def _find(self, label: int) -> int:
        parent = self._parent
        while (above := int(parent[label])) != label:
            parent[label] = parent[above]
            label = above
        return label


def _merged(one: Array, other: Array) -> int:
    """How many labels become equal when these columns are tied."""
    pairs = len(np.unique(one * (int(other.max()) + 1) + other))
    return 2 * pairs - len(np.unique(one)) - len(np.unique(other))

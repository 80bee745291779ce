"""The nearest few of many distances: merged from block to block, so that memory does not grow with what is searched."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

Found = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


def check_k(k: int, entries: int) -> None:
    """Raise `InputError` where not so many can be found."""
    check_count("k", k)
    if k > entries:
        raise InputError(f"k is {k}, but only {entries} entries are searched; take fewer, or add more")


def nearest(distances: npt.NDArray[Any], places: npt.NDArray[np.int64], k: int) -> Found:
    """The k smallest distances [n] and their places, smallest first, of equal ones the one of the smaller place.

    The order of `places` is taken for theirs where distances are equal, so they are given in rising order.
    """
    order = np.argsort(distances, kind="stable")[:k]
    return distances[order], places[order]


def within(distances: npt.NDArray[Any], k: int, largest: int) -> int:
    """The smallest radius, at most `largest`, that at least k of the distances (whole numbers) lie within; by bisection, which
    reads bytes faster than any sort does."""
    low, high = -1, largest  # not enough within low, enough within high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if np.count_nonzero(distances <= middle) >= k else (middle, high)
    return high

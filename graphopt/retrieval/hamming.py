"""Search by Hamming distance in NumPy: exclusive or, and the number of ones, for every code.

    distance(q, x) = popcount(q ^ x)

Codes lie word by word, [words, N], so that each word of all codes of a block is one run through memory, and a block of them stays
in the processor's cache for all queries. The nearest are found by the smallest radius that holds enough of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.retrieval.selection import Found, check_k, nearest, within
from graphopt.utils.errors import InputError

BLOCK = 2**15  # codes that are compared at once
Words = npt.NDArray[np.uint64]
_ONES = np.array([n.bit_count() if hasattr(n, "bit_count") else bin(n).count("1") for n in range(2**16)], np.uint8)


class HammingIndex:
    """Codes to search in.

    Args:
        codes: uint8 [N, bytes], as models with `BinaryCodes` give them.

    Raises:
        InputError: codes are no matrix of bytes.
    """

    def __init__(self, codes: npt.ArrayLike) -> None:
        found = _checked(codes)
        self.count, self.width = len(found), int(found.shape[1])
        self.planes = np.ascontiguousarray(_words(found).T)

    def __len__(self) -> int:
        return self.count

    @property
    def bytes(self) -> int:
        """Of the codes that are stored."""
        return int(self.planes.nbytes)

    def search(self, queries: npt.ArrayLike, k: int) -> Found:
        """The k nearest of each query, nearest first, of equal ones the first.

        Args:
            queries: uint8 [Q, bytes].

        Returns:
            Distances, int32 [Q, k], and places in `codes`, int64 [Q, k].

        Raises:
            InputError: queries are of other bytes than the codes, or there are fewer than k codes.
        """
        check_k(k, len(self))
        asked = _checked(queries)
        if asked.shape[1] != self.width:
            raise InputError(f"queries have {asked.shape[1]} bytes, the codes have {self.width}")
        words = _words(asked)
        best: list[Found] = [(np.zeros(0, np.int32), np.zeros(0, np.int64))] * len(words)
        for first in range(0, len(self), BLOCK):
            block = np.ascontiguousarray(self.planes[:, first : first + BLOCK])
            room = _Room(block.shape[1], 8 * self.width)
            for number, query in enumerate(words):
                best[number] = _better(best[number], room.distances(block, query), first, k, 8 * self.width)
        return _stacked(best, k)


class _Room:
    """Memory for the distances of one block, used for every query."""

    def __init__(self, count: int, bits: int) -> None:
        self.different = np.empty(count, np.uint64)
        self.ones = np.empty(count, np.uint8)
        self.sums = np.empty(count, np.uint8 if bits < 2**8 else np.uint16 if bits < 2**16 else np.uint32)

    def distances(self, block: Words, query: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
        """Of one query to each code of a block; overwritten by the next call."""
        for number, (plane, word) in enumerate(zip(block, query, strict=True)):
            np.bitwise_xor(plane, word, out=self.different)
            popcount(self.different, self.ones if number else self.sums)
            if number:
                np.add(self.sums, self.ones, out=self.sums)
        return self.sums


def popcount(words: npt.NDArray[np.uint64], out: npt.NDArray[Any]) -> None:
    """The number of ones in each word; from a table of 2^16 where NumPy has no function for it (before 2.0)."""
    if hasattr(np, "bitwise_count"):
        np.bitwise_count(words, out=out)
    else:
        by_table(words, out)


def by_table(words: npt.NDArray[np.uint64], out: npt.NDArray[Any]) -> None:
    """`popcount` by a table."""
    _ONES[words.view(np.uint16)].reshape(-1, 4).sum(1, dtype=np.uint8, out=out)


def _better(best: Found, distances: npt.NDArray[Any], first: int, k: int, bits: int) -> Found:
    """The nearest of those known and of a block, whose first code is at `first`."""
    known, places = best
    if len(known) < k:
        near = _first_within(distances, min(k, len(distances)), bits)
    elif distances.min() < known[-1]:  # of equal ones the first stay
        near = np.flatnonzero(distances < known[-1])
    else:
        return best
    if len(near) > 4 * k:
        near = near[_first_within(distances[near], k, bits)]
    return nearest(np.append(known, distances[near].astype(np.int32)), np.append(places, near + first), k)


def _first_within(distances: npt.NDArray[Any], k: int, bits: int) -> npt.NDArray[np.int64]:
    """The places of the k smallest distances, in rising order, of equal ones the first."""
    radius = within(distances, k, bits)
    near: npt.NDArray[np.int64] = np.flatnonzero(distances <= radius)
    if len(near) > k:
        at = distances[near] == radius
        near = near[~at | (np.cumsum(at) <= k - np.count_nonzero(~at))]
    return near


def _stacked(best: list[Found], k: int) -> Found:
    if not best:
        return np.zeros((0, k), np.int32), np.zeros((0, k), np.int64)
    return np.stack([d for d, _ in best]), np.stack([p for _, p in best])


def _checked(codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[Any] = np.asarray(codes)
    if found.ndim != 2 or found.dtype != np.uint8 or not found.shape[1]:
        raise InputError(f"codes must be bytes, uint8 [N, bytes]; got {found.dtype} of shape {found.shape}")
    return found


def _words(codes: npt.NDArray[np.uint8]) -> Words:
    """Bytes as words of 64 bits, [N, words], filled up with zeros."""
    missing = -codes.shape[1] % 8
    return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, missing)))).view(np.uint64)

"""What codes lose and gain beside an exact search among the features: recall, bytes, time.

    recall(c) = mean over queries of  |k nearest by features, among the c nearest by codes| / k

With c = k that is recall@k; with a larger c, what is left for whoever ranks c candidates again by their features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graphopt.ir.cost import Timings, timings
from graphopt.retrieval.exact import FloatIndex, Metric
from graphopt.retrieval.hamming import HammingIndex
from graphopt.retrieval.selection import Found
from graphopt.utils.errors import InputError

ASKED_ALONE = 32  # queries that are timed one by one
ROUNDS = 7


class Index(Protocol):
    """Anything that is searched."""

    def __len__(self) -> int: ...

    def search(self, queries: npt.ArrayLike, k: int) -> Found: ...


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one query among features and among codes, and how many times faster the second is: medians of rounds that
    ran in turn."""

    exact_ms: float
    codes_ms: float
    faster: float


@dataclass(frozen=True)
class Retrieval:
    """What `compare` found.

    Attributes:
        entries: searched. queries: asked for. k: neighbours that were looked for.
        recall: by the number of candidates, 0 to 1; see the head of this file.
        bytes_exact, bytes_codes: of all entries.
        alone: one query at a call. together: all of them at one, for each. None: nothing was timed.
    """

    entries: int
    queries: int
    k: int
    recall: Mapping[int, float]
    bytes_exact: int
    bytes_codes: int
    alone: Speed | None = None
    together: Speed | None = None

    def __str__(self) -> str:
        lines = [f"{self.entries} entries, {self.queries} queries, {self.k} nearest"]
        lines += [f"recall among {count:>5}  {share:.3f}" for count, share in self.recall.items()]
        lines.append(f"bytes  {self.bytes_exact} -> {self.bytes_codes}, 1/{self.bytes_exact / self.bytes_codes:.0f}")
        for name, speed in (("alone", self.alone), ("together", self.together)):
            if speed is not None:
                lines.append(f"ms a query, {name}  {speed.exact_ms:.3g} -> {speed.codes_ms:.3g}, {speed.faster:.1f} x")
        return "\n".join(lines)


def compare(
    features: npt.ArrayLike,
    codes: npt.ArrayLike,
    queries: npt.ArrayLike,
    query_codes: npt.ArrayLike,
    *,
    k: int = 10,
    among: Sequence[int] = (10, 100),
    metric: Metric = "euclidean",
    index: Callable[[Any], Index] = HammingIndex,
    timed: bool = True,
) -> Retrieval:
    """Search for the same queries among features and among codes.

    Args:
        features: float [N, width], and `codes`, uint8 [N, bytes], of the same entries.
        queries: float [Q, width], and `query_codes`, uint8 [Q, bytes], of the same queries.
        k: nearest by features that are looked for.
        among: numbers of candidates by codes, each at least k.
        index: what searches codes; `FaissIndex` is another.

    Raises:
        InputError: features and codes are of different entries, or fewer than were asked for.
    """
    exact, approximate = FloatIndex(features, metric), index(codes)
    asked, asked_codes = np.asarray(queries, np.float32), np.asarray(query_codes)
    if len(exact) != len(approximate) or len(asked) != len(asked_codes) or not len(asked):
        raise InputError(
            f"there are {len(exact)} features and {len(approximate)} codes, {len(asked)} queries and {len(asked_codes)} "
            "codes of queries; give both of the same entries"
        )
    if not among or min(among) < k:
        raise InputError(f"among must hold numbers of candidates of at least k = {k}, got {list(among)}")
    _, wanted = exact.search(asked, k)
    _, found = approximate.search(asked_codes, max(among))
    recall = {count: _recall(wanted, found[:, :count]) for count in among}
    alone, together = _speeds(exact, approximate, asked, asked_codes, k) if timed else (None, None)
    held = int(np.asarray(codes).nbytes)
    return Retrieval(len(exact), len(asked), k, recall, exact.bytes, held, alone, together)


def _recall(wanted: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    shares = [np.isin(row, near).mean() for row, near in zip(wanted, found, strict=True)]
    return float(np.mean(shares))


def _speeds(
    exact: Index, approximate: Index, asked: npt.NDArray[Any], codes: npt.NDArray[Any], k: int
) -> tuple[Speed, Speed]:
    few = range(min(len(asked), ASKED_ALONE))
    calls: dict[str, Callable[[], Any]] = {
        "exact alone": lambda: [exact.search(asked[n : n + 1], k) for n in few],
        "codes alone": lambda: [approximate.search(codes[n : n + 1], k) for n in few],
        "exact": lambda: exact.search(asked, k),
        "codes": lambda: approximate.search(codes, k),
    }
    taken = timings(calls, repeats=ROUNDS, warmup=1)
    return _speed(taken, " alone", len(few)), _speed(taken, "", len(asked))


def _speed(taken: Timings, which: str, queries: int) -> Speed:
    before, after = f"exact{which}", f"codes{which}"
    return Speed(taken.median(before) / queries, taken.median(after) / queries, taken.speedup(before, after))

"""The report on codes: recall counted by hand, bytes, times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.retrieval import HammingIndex, compare
from graphopt.utils.errors import InputError


def line(count: int, seed: int) -> tuple[Any, Any]:
    """Points of a line, and codes that count up along it: as many ones as the place, in eighths."""
    features = np.sort(np.random.default_rng(seed).uniform(0, 1, (count, 1)), 0)
    bits = features > (np.arange(16) + 0.5) / 16
    return features, np.packbits(bits, axis=1)


def test_recall_is_the_share_of_the_nearest_that_is_found() -> None:
    features, codes = line(300, 0)
    queries, query_codes = line(10, 1)
    found = compare(features, codes, queries, query_codes, k=5, among=(5, 40), timed=False)
    _, near = HammingIndex(codes).search(query_codes, 40)
    wanted = np.argsort(np.abs(queries - features.T), axis=1)[:, :5]
    for count in (5, 40):
        shares = [len(set(a) & set(b[:count])) / 5 for a, b in zip(wanted.tolist(), near.tolist(), strict=True)]
        assert found.recall[count] == pytest.approx(np.mean(shares))
    assert found.recall[5] < found.recall[40]
    assert found.recall[40] > 0.9
    assert (found.bytes_exact, found.bytes_codes) == (1200, 600)
    assert found.alone is None


def test_codes_that_are_the_order_itself_lose_nothing() -> None:
    bits = np.tril(np.ones((17, 16), bool), -1)  # 0 to 16 ones
    codes = np.packbits(bits, axis=1)
    found = compare(bits.sum(1)[:, None], codes, [[0.0]], codes[:1], k=3, among=(3,))
    assert found.recall == {3: 1.0}
    assert found.alone is not None
    assert found.alone.exact_ms > 0
    assert found.alone.faster > 0
    text = str(found)
    assert "17 entries, 1 queries, 3 nearest" in text
    assert "recall among     3  1.000" in text
    assert "ms a query, together" in text


def test_what_does_not_go_together_is_refused() -> None:
    features, codes = line(30, 0)
    for call, said in (
        (lambda: compare(features, codes[:20], features, codes), "30 features and 20 codes"),
        (lambda: compare(features, codes, features[:2], codes), "2 queries and 30"),
        (lambda: compare(features, codes, features, codes, k=12), "at least k = 12"),
        (lambda: compare(features, codes, features, codes, among=(10, 31)), "only 30 entries"),
    ):
        with pytest.raises(InputError, match=said):
            call()

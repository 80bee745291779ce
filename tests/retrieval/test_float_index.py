"""Exact search among features, beside SciPy's distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from graphopt.retrieval import FloatIndex, exact
from graphopt.utils.errors import InputError


def drawn(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 12)) + 3.0


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block", [5, 2**16])
def test_it_finds_what_all_distances_say(metric: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK", block)
    monkeypatch.setattr(exact, "QUERIES", 4)
    features, queries = drawn(103), drawn(9, 1)
    distances, places = FloatIndex(features, metric).search(queries, 7)
    apart = cdist(queries, features, "sqeuclidean" if metric == "euclidean" else "cosine")
    assert (places == np.argsort(apart, axis=1)[:, :7]).all()
    np.testing.assert_allclose(distances, np.sort(apart, axis=1)[:, :7], rtol=1e-3, atol=1e-5)


def test_it_says_what_it_takes() -> None:
    index = FloatIndex(drawn(10))
    assert (len(index), index.bytes) == (10, 480)
    assert index.search(np.zeros((0, 12)), 2)[0].shape == (0, 2)
    broken = drawn(4)
    broken[2, 3] = np.nan
    for call, said in (
        (lambda: FloatIndex(broken), "finite"),
        (lambda: FloatIndex(drawn(4)[0]), "matrix"),
        (lambda: FloatIndex(drawn(4), "manhattan"), "unknown metric 'manhattan'"),  # type: ignore[arg-type]
        (lambda: index.search(drawn(2)[:, :5], 1), "queries have 5 features, the index has 12"),
        (lambda: index.search(drawn(2), 11), "only 10 entries"),
    ):
        with pytest.raises(InputError, match=said):
            call()

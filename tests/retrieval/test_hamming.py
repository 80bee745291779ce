"""Search by Hamming distance: what it finds, beside distances counted bit by bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.retrieval import HammingIndex, hamming
from graphopt.utils.errors import InputError

Bytes = npt.NDArray[np.uint8]


def drawn(count: int, width: int, seed: int = 0, high: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, high, (count, width), dtype=np.uint8)


def counted(codes: Bytes, queries: Bytes, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The k nearest by bits that differ, of equal ones the first."""
    ones, asked = np.unpackbits(codes, axis=1), np.unpackbits(queries, axis=1)
    apart = (asked[:, None] != ones[None]).sum(2)
    order = np.argsort(apart, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(apart, order, 1), order


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 70), width=st.integers(1, 40), high=st.sampled_from([1, 2, 256]), block=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_it_finds_the_nearest_of_equal_ones_the_first(
    count: int, width: int, high: int, block: int, seed: int, data: st.DataObject
) -> None:
    """Few different bytes make many equal distances; small blocks many merges."""
    codes, queries = drawn(count, width, seed, high), drawn(3, width, seed + 1, high)
    k = data.draw(st.integers(1, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "BLOCK", block)
        distances, places = HammingIndex(codes).search(queries, k)
    wanted, order = counted(codes, queries, k)
    assert (distances == wanted).all()
    assert (places == order).all()


def test_codes_of_more_than_255_bits_do_not_overflow() -> None:
    codes = np.stack([np.zeros(64, np.uint8), np.full(64, 255, np.uint8)])
    distances, places = HammingIndex(codes).search(codes[1:], 2)
    assert distances.tolist() == [[0, 512]]
    assert places.tolist() == [[1, 0]]


def test_a_table_counts_what_numpy_counts() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    found = np.empty(1000, np.uint8)
    hamming.by_table(words, found)
    assert found.tolist() == [int(word).bit_count() for word in words]
    hamming.popcount(words, found)
    assert found.tolist() == [int(word).bit_count() for word in words]


def test_without_a_function_for_it_the_table_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = drawn(50, 9)
    wanted = HammingIndex(codes).search(codes[:4], 5)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    found = HammingIndex(codes).search(codes[:4], 5)
    assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


def test_memory_does_not_grow_with_what_is_searched() -> None:
    codes, queries = drawn(400_000, 8), drawn(4, 8, 1)
    index = HammingIndex(codes)
    tracemalloc.start()
    index.search(queries, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # all distances at once would be 1.6 MB in bytes, 12.8 MB in words


def test_it_says_what_it_takes() -> None:
    index = HammingIndex(drawn(10, 4))
    assert (len(index), index.bytes) == (10, 80)  # words of 8 bytes
    none = index.search(np.zeros((0, 4), np.uint8), 3)
    assert [part.shape for part in none] == [(0, 3), (0, 3)]
    for call, said in (
        (lambda: HammingIndex(np.zeros((4, 4))), "uint8"),
        (lambda: HammingIndex(np.zeros(4, np.uint8)), "shape"),
        (lambda: index.search(drawn(2, 5), 3), "queries have 5 bytes, the codes have 4"),
        (lambda: index.search(drawn(2, 4), 11), "only 10 entries"),
        (lambda: index.search(drawn(2, 4), 0), "at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            call()

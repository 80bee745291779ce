"""Coded bytes come back as they were, in about as many bits as their entropy says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.coding import ans, huffman, streams
from graphopt.coding.reader import Reader, varint
from graphopt.utils.errors import InputError


def draw(deviation: float, count: int = 200_000) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, deviation, count)
    return np.clip(np.round(values), -127, 127).astype(np.int8).view(np.uint8)


def entropy(symbols: np.ndarray) -> float:
    """Bytes."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / len(symbols))).sum() / 8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 255), max_size=600),
    st.sampled_from(streams.CODINGS),
    st.integers(0, 900),
    st.integers(1, 255),
)
def test_every_stream_comes_back(symbols: list[int], coding: streams.Coding, zeros: int, step: int) -> None:
    dense = np.array(symbols, np.uint8)
    sparse = np.zeros(len(symbols) + zeros, np.uint8)
    sparse[np.arange(0, len(sparse), step)] = 7
    for each in (dense, sparse, dense // 64):
        reader = Reader(streams.encode(each, coding))
        assert (streams.decode(reader, len(each)) == each).all()
        assert reader.at == len(reader.content)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 5.0, 30.0])
def test_rans_takes_a_hundredth_over_the_entropy(deviation: float) -> None:
    symbols = draw(deviation)
    coded = ans.encode(symbols)
    assert (ans.decode(coded, len(symbols)) == symbols).all()
    assert entropy(symbols) < len(coded) < 1.012 * entropy(symbols) + 600


@pytest.mark.parametrize("deviation", [5.0, 30.0])
def test_huffman_takes_a_hundredth_over_the_entropy_where_no_symbol_is_frequent(deviation: float) -> None:
    symbols = draw(deviation)
    assert len(huffman.encode(symbols)) < 1.01 * entropy(symbols) + 600


def test_pruned_weights_are_stored_by_relative_positions() -> None:
    symbols = draw(5.0)
    symbols[np.random.default_rng(1).random(len(symbols)) < 0.9] = 0
    coded = streams.encode(symbols, "huffman")
    assert coded[0] == streams.SPARSE
    assert len(coded) < 1.06 * entropy(symbols)


def test_gaps_are_those_of_the_paper() -> None:
    symbols = np.zeros(600, np.uint8)
    symbols[[2, 3, 300]] = [5, 6, 7]
    gaps, values = streams.relative(symbols, 0)
    assert gaps.tolist() == [2, 0, 255, 41]  # 255 zeros and no value, then 41 and one
    assert values.tolist() == [5, 6, 7]


def test_frequencies_sum_to_their_total_and_none_is_zero() -> None:
    counts = np.array([10**9, 1, 1, 1, 5])
    found = ans.quantized(counts)
    assert found.sum() == ans.TOTAL
    assert found.min() == 1


def test_rans_refuses_one_symbol_alone() -> None:
    with pytest.raises(ValueError, match="one symbol alone"):
        ans.encode(np.zeros(5, np.uint8))


@pytest.mark.parametrize("count", [999, 1001, 2000])
def test_another_number_of_symbols_is_an_error(count: int) -> None:
    symbols = draw(3.0, 1000)
    for coded, decode in ((huffman.encode(symbols), huffman.decode), (ans.encode(symbols), ans.decode)):
        with pytest.raises(InputError):
            decode(coded, count)


def test_a_small_stream_cannot_make_a_large_one() -> None:
    bomb = huffman.deflate(bytes(10**7))
    with pytest.raises(InputError, match="where 100 are announced"):
        huffman.decode(bomb, 100)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**14, 2**35 - 1])
def test_numbers_come_back(number: int) -> None:
    assert Reader(varint(number)).varint(2**35) == number


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff" * 6, b"\xff\x7f"])
def test_numbers_that_are_cut_short_or_too_large_are_errors(content: bytes) -> None:
    with pytest.raises(InputError):
        Reader(content).varint(1000)

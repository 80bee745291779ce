"""Literals of deflate, by every inflate that may decode them."""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from graphopt.coding import huffman
from graphopt.utils.errors import InputError


@pytest.fixture(params=["zlib", "isal"])
def inflating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = zlib if request.param == "zlib" else pytest.importorskip("isal.isal_zlib")
    monkeypatch.setattr(huffman, "inflating", module)
    return module


def drawn(deviation: float, count: int) -> np.ndarray:
    codes = np.random.default_rng(0).normal(0, deviation, count).round().clip(-127, 127)
    return codes.astype(np.int8).view(np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 255, 1 << 17])
@pytest.mark.parametrize("deviation", [0.3, 6.0, 60.0])
def test_symbols_come_back(inflating: Any, deviation: float, count: int) -> None:
    symbols = drawn(deviation, count)
    assert np.array_equal(huffman.decode(huffman.encode(symbols), count), symbols)
    text = b"the same text, " * 50
    assert huffman.decode(huffman.deflate(text), len(text)).tobytes() == text


def test_what_is_damaged_is_refused_or_right(inflating: Any) -> None:
    symbols = drawn(3.0, 400)
    content = huffman.encode(symbols)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        with suppress(InputError):
            assert len(huffman.decode(bytes(damaged), 400)) == 400  # another symbol, which checksums of files find


@pytest.mark.parametrize("count", [0, 1, 399, 401])
def test_another_number_of_symbols_is_refused(inflating: Any, count: int) -> None:
    with pytest.raises(InputError, match="coded stream"):
        huffman.decode(huffman.encode(drawn(3.0, 400)), count)


def test_a_stream_that_is_cut_short_or_goes_on_is_refused(inflating: Any) -> None:
    content = huffman.encode(drawn(3.0, 400))
    for damaged in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        with pytest.raises(InputError, match="coded stream"):
            huffman.decode(damaged, 400)

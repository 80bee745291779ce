"""Range asymmetric numeral systems (rANS): bytes in as many bits as their frequencies say, fractions of a bit included.

A state x holds what is coded. With f the frequency of a symbol out of M = 2^12, and c the sum of the frequencies before it,

    encode    x' = (x // f) M + c + x % f
    decode    slot = x' % M;  s: the symbol whose [c, c + f) holds slot;  x = f (x' // M) + slot - c

States stay in [2^16, 2^32): encoding moves 16 bits out where x would grow beyond, decoding reads them back. The symbols are dealt
out to `lanes` states in turn, so that NumPy decodes one symbol of every lane at a time.

Layout: u8 number of symbols - 1, the symbols (u8, ascending), their frequencies (varint), lanes (varint), one u32 state to each
lane, then u16 words in the order in which they are read. All little-endian.

Decoding ends where encoding began, with every state at 2^16 and no word left: what is damaged is noticed there at the latest.

Papers: Duda 2013, "Asymmetric numeral systems"; Giesen 2014, "Interleaved entropy coders".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.coding.reader import Reader, varint
from graphopt.utils.errors import InputError

Bytes = npt.NDArray[np.uint8]
PRECISION = 12
TOTAL = 1 << PRECISION
LEAST = 1 << 16  # of a state
MOST_LANES = 8192
PER_LANE = 768  # coded bytes: a lane costs up to four


def encode(symbols: Bytes) -> bytes:
    """Code bytes of at least two kinds.

    Raises:
        ValueError: all are equal, or there are none.
    """
    counts = np.bincount(symbols, minlength=256)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        raise ValueError("one symbol alone has no code")
    frequencies = quantized(counts[used])
    lanes = _lanes(counts[used], len(symbols))
    states, words = _encoded(np.searchsorted(used, symbols), frequencies, lanes)
    head = bytes([len(used) - 1]) + used.astype(np.uint8).tobytes() + b"".join(map(varint, frequencies.tolist()))
    return b"".join([head, varint(lanes), states.astype("<u4").tobytes(), words.astype("<u2").tobytes()])


def quantized(counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Frequencies of at least 1 that sum to `TOTAL`, near to the shares: what is left over goes where it saves most."""
    exact = counts * (TOTAL / counts.sum())
    found: npt.NDArray[np.int64] = np.maximum(1, np.floor(exact)).astype(np.int64)
    while (left := TOTAL - int(found.sum())) != 0:
        step = 1 if left > 0 else -1
        gain = counts * np.log2(np.maximum(found + step, 1e-9) / found)
        gain[found + step < 1] = -np.inf
        found[np.argsort(-gain, kind="stable")[: abs(left) if step > 0 else 1]] += step
    return found


def _lanes(counts: npt.NDArray[Any], symbols: int) -> int:
    size = -(counts * np.log2(counts / counts.sum())).sum() / 8
    return int(np.clip(min(size / PER_LANE, symbols), 1, MOST_LANES))


def _encoded(places: npt.NDArray[Any], frequencies: npt.NDArray[np.int64], lanes: int) -> tuple[Any, Any]:
    """The states at the end, [lanes], and the words as they will be read."""
    f = frequencies.astype(np.uint64)
    before = np.cumsum(f) - f
    limit = f << np.uint64(32 - PRECISION)
    states, words = np.full(lanes, LEAST, np.uint64), []
    for start in reversed(range(0, len(places), lanes)):
        row = places[start : start + lanes]
        x = states[: len(row)]
        full = x >= limit[row]
        words.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        quotient, rest = np.divmod(x, f[row])
        states[: len(row)] = (quotient << np.uint64(PRECISION)) + before[row] + rest
    return states, np.concatenate(words[::-1])


def decode(content: bytes | memoryview, count: int) -> Bytes:
    """The `count` bytes that were coded.

    Raises:
        InputError: they are damaged.
    """
    reader = Reader(content)
    kinds = reader.byte() + 1
    used = np.frombuffer(reader.take(kinds), np.uint8)
    frequencies = np.array([reader.varint(TOTAL) for _ in range(kinds)], np.int64)
    if kinds < 2 or frequencies.min() < 1 or frequencies.sum() != TOTAL or (np.diff(used.astype(int)) <= 0).any():
        raise InputError("the frequencies of a coded stream do not fit together")
    lanes = reader.varint(MOST_LANES)
    if not 1 <= lanes <= count:
        raise InputError(f"a coded stream has {lanes} lanes for {count} symbols")
    states = np.frombuffer(reader.take(4 * lanes), "<u4").astype(np.int64)
    rest = reader.take(len(content) - reader.at)
    if len(rest) % 2 or (states < LEAST).any():
        raise InputError("the states of a coded stream are damaged")
    return _decoded(states, np.frombuffer(rest, "<u2").astype(np.int64), used, frequencies, count)


def _decoded(states: Any, words: Any, used: Bytes, frequencies: npt.NDArray[np.int64], count: int) -> Bytes:
    before = np.cumsum(frequencies) - frequencies
    symbol = np.repeat(used, frequencies)
    factor = np.repeat(frequencies, frequencies)
    offset = np.arange(TOTAL) - np.repeat(before, frequencies)
    lanes, place, found = len(states), 0, np.empty(count, np.uint8)
    x, slot = states, np.empty(lanes, np.int64)
    for start in range(0, count, lanes):
        if count - start < lanes:
            x, slot = states[: count - start], slot[: count - start]
        np.bitwise_and(x, TOTAL - 1, out=slot)
        symbol.take(slot, out=found[start : start + lanes], mode="clip")
        np.right_shift(x, PRECISION, out=x)
        np.multiply(x, factor.take(slot, mode="clip"), out=x)
        np.add(x, offset.take(slot, mode="clip"), out=x)
        (low,) = np.nonzero(x < LEAST)
        if place + len(low) > len(words):
            raise InputError("a coded stream is cut short")
        x[low] = (x[low] << 16) | words[place : place + len(low)]
        place += len(low)
    if place != len(words) or (states != LEAST).any():
        raise InputError("a coded stream is damaged")
    return found

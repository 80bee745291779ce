"""Bytes in the smallest of the codings that are allowed, zeros apart where there are many.

    stream     u8 kind, then
    0 raw      the bytes
    1 huffman  length (varint), deflate of literals             `huffman.py`
    2 ans      length (varint), states and words                `ans.py`
    3 constant the byte that all are
    4 sparse   u8 filler, steps (varint), stream of gaps, stream of values

Sparse is Han et al.'s form: a gap g < 255 stands for g fillers and a value behind them; 255 for 255 fillers and no value. What is
left at the end are fillers. Gaps and values are streams of their own, of any other kind. How many symbols a stream holds its
reader knows.

Paper: Han et al. 2016, "Deep Compression", section 2 (relative positions) and 4.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from graphopt.coding import ans, huffman
from graphopt.coding.reader import Reader, varint
from graphopt.utils.errors import InputError, alternatives

Bytes = npt.NDArray[np.uint8]
Coding = Literal["huffman", "ans", "entropy"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
RAW, HUFFMAN, ANS, CONSTANT, SPARSE = range(5)
SKIP = 255  # a gap without a value
GAIN = 0.96  # of the bytes of Huffman's codes that rANS has to come below: it is decoded more slowly,
LARGE = 1 << 15  # and far more slowly below so many symbols, which leave few lanes to work on at a time
DENSE = 0.4  # share of the most frequent symbol below which relative positions are not tried


def check(coding: str) -> None:
    """Raise `InputError` unless this names a coding."""
    if coding not in CODINGS:
        raise InputError(f"unknown coding {coding!r}; {alternatives(coding, CODINGS, 'codings')}")


def encode(symbols: Bytes, coding: Coding) -> bytes:
    """A stream of these bytes.

    Args:
        coding: `huffman`, `ans`, or `entropy`: whichever of the two is smaller; rANS only of many symbols, where it saves a
            twenty-fifth.
    """
    found = [_plain(symbols, coding)]
    if len(symbols) and found[0][0] != CONSTANT:
        counts = np.bincount(symbols, minlength=256)
        filler = int(counts.argmax())
        if counts[filler] >= DENSE * len(symbols):
            found.append(_sparse(symbols, filler, coding))
    return min(found, key=_weighed)


def _plain(symbols: Bytes, coding: Coding) -> bytes:
    if not len(symbols):
        return bytes([RAW])
    if (symbols == symbols[0]).all():
        return bytes([CONSTANT, symbols[0]])
    found = [bytes([RAW]) + symbols.tobytes()]
    if coding != "ans":
        found.append(_framed(HUFFMAN, huffman.encode(symbols)))
    if coding == "ans" or (coding == "entropy" and len(symbols) >= LARGE):
        found.append(_framed(ANS, ans.encode(symbols)))
    return min(found, key=_weighed)


def _weighed(stream: bytes) -> float:
    return len(stream) / (GAIN if stream[0] == ANS else 1)


def _framed(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + varint(len(content)) + content


def _sparse(symbols: Bytes, filler: int, coding: Coding) -> bytes:
    gaps, values = relative(symbols, filler)
    return bytes([SPARSE, filler]) + varint(len(gaps)) + _plain(gaps, coding) + _plain(values, coding)


def relative(symbols: Bytes, filler: int) -> tuple[Bytes, Bytes]:
    """Gaps and values, as the head of this file says; u8 [steps] and [values]."""
    (places,) = np.nonzero(symbols != filler)
    gaps = np.diff(places, prepend=-1) - 1
    skips, rest = np.divmod(gaps, SKIP)
    steps = np.full(len(gaps) + int(skips.sum()), SKIP, np.uint8)
    steps[np.cumsum(skips + 1) - 1] = rest
    return steps, symbols[places]


def decode(reader: Reader, count: int, *, nested: bool = False) -> Bytes:
    """The next stream, of `count` bytes; the caller has made sure that so many may be held.

    Raises:
        InputError: it is damaged.
    """
    kind = reader.byte()
    if kind == RAW:
        return np.frombuffer(reader.take(count), np.uint8)
    if kind == CONSTANT:
        return np.full(count, reader.byte(), np.uint8)
    if kind in (HUFFMAN, ANS):
        content = reader.take(reader.varint(len(reader.content)))
        return huffman.decode(content, count) if kind == HUFFMAN else ans.decode(content, count)
    if kind == SPARSE and not nested:
        return _dense(reader, count)
    raise InputError(f"a coded stream has the kind {kind}, which does not exist or may not stand there")


def _dense(reader: Reader, count: int) -> Bytes:
    filler, steps = reader.byte(), reader.varint(count)
    gaps = decode(reader, steps, nested=True)
    ends: Any = np.cumsum(gaps + (gaps != SKIP), dtype=np.int64)
    if len(ends) and ends[-1] > count:
        raise InputError(f"a coded stream places a value at {ends[-1]} of {count}")
    places = ends[gaps != SKIP] - 1
    found = np.full(count, filler, np.uint8)
    found[places] = decode(reader, len(places), nested=True)
    return found

"""Huffman codes, as deflate (RFC 1951) has them: a stream of literals alone, without repetitions.

Any inflate reads it, those of microcontrollers, too; ISA-L's (`pip install 'graphopt[storage]'`) is up to two and a half times as
fast as zlib's. Codes have up to 15 bits; blocks of 2^15 symbols have a code each, which follows what changes along a tensor.

Papers: Huffman 1952, "A Method for the Construction of Minimum-Redundancy Codes"; Han et al. 2016, "Deep Compression", section 4.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.utils.errors import InputError

inflating: Any = zlib
with suppress(ImportError):
    from isal import isal_zlib as inflating

RAW = -zlib.MAX_WBITS  # without zlib's own head and checksum


def encode(symbols: npt.NDArray[np.uint8]) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, RAW, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(symbols.tobytes()) + coder.flush()


def deflate(content: bytes) -> bytes:
    """With repetitions, for what is no weight."""
    coder = zlib.compressobj(9, zlib.DEFLATED, RAW, 9)
    return coder.compress(content) + coder.flush()


def decode(content: bytes | memoryview, count: int) -> npt.NDArray[np.uint8]:
    """The `count` bytes that either of the two coded; no more than these are ever held.

    Raises:
        InputError: they are damaged, or not so many.
    """
    decoder = inflating.decompressobj(RAW)
    try:
        found = decoder.decompress(content, count + 1) if count else decoder.decompress(content, 1)
    except inflating.error as error:
        raise InputError(f"a coded stream is damaged ({error})") from error
    if len(found) != count or not decoder.eof or decoder.unused_data:
        raise InputError(
            f"a coded stream holds {len(found)} symbols where {count} are announced, or goes on behind them"
        )
    return np.frombuffer(found, np.uint8)

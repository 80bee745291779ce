"""What is no tensor, with repetitions: the text of a file, in deflate or LZMA, whichever is smaller.

    text       u8 kind, length (varint), then
    0 deflate  raw deflate (RFC 1951)
    1 LZMA     a raw LZMA2 stream with a dictionary of 2^20 bytes, where Python has the module

It is read part by part, and no more than a part of it is held.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from graphopt.coding import huffman
from graphopt.coding.reader import Reader, varint
from graphopt.utils.errors import InputError

try:
    import lzma
except ImportError:  # Python can be built without
    lzma = None  # type: ignore[assignment]

PART = 1 << 20  # bytes
_ERRORS: tuple[type[Exception], ...] = (zlib.error,) if lzma is None else (zlib.error, lzma.LZMAError, EOFError)
DEFLATE, LZMA = range(2)


def encode(content: bytes) -> bytes:
    """The text in its smaller form."""
    found = [_framed(DEFLATE, huffman.deflate(content))]
    if lzma is not None:
        found.append(_framed(LZMA, lzma.compress(content, lzma.FORMAT_RAW, filters=_filters())))
    return min(found, key=len)


def _framed(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + varint(len(content)) + content


def _filters() -> list[dict[str, Any]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": PART}]


class Text:
    """A text that is read part by part, from where a reader stands.

    Raises:
        InputError: it is of no known kind.
    """

    def __init__(self, reader: Reader) -> None:
        kind = reader.byte()
        self._rest = bytes(reader.take(reader.varint(len(reader.content))))
        if kind == LZMA and lzma is None:
            raise InputError("the file holds LZMA, which this Python was built without; read it with another")
        if kind not in (DEFLATE, LZMA):
            raise InputError(f"a text has the kind {kind}, which does not exist")
        self._kind = kind
        self._decoder: Any = (
            zlib.decompressobj(huffman.RAW)
            if kind == DEFLATE
            else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters())
        )

    def parts(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes.

        Raises:
            InputError: it is damaged, or ends before.
        """
        while count:
            found = self._next(min(count, PART))
            if not found:
                raise InputError(f"a text ends {count} bytes too early")
            count -= len(found)
            yield found

    def finish(self) -> None:
        """Raises InputError unless all has been read."""
        if self._next(1) or not self._decoder.eof or self._decoder.unused_data:
            raise InputError("a text goes on behind what is announced")

    def _next(self, most: int) -> bytes:
        if self._decoder.eof:
            return b""
        try:
            found: bytes = self._decoder.decompress(self._rest, most)
        except _ERRORS as error:
            raise InputError(f"a text is damaged ({error})") from error
        self._rest = self._decoder.unconsumed_tail if self._kind == DEFLATE else b""
        return found

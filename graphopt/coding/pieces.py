"""A file as its tensors, each in the form in which it is smallest, and all that lies between them, as one text.

    file       the text (`text.py`) of all that lies between; number of pieces (varint);
               for each piece the bytes of text in front of it (varint), and the piece

    piece      u8 form, restored bytes (varint), then
    0 plain    length (varint), deflate with repetitions
    1 planes   u8 width w; w streams: the first bytes of all elements, the second bytes, ...
    2 table    u8 width w, u8 entries - 1, the entries; a stream of which entry each element is: shared values
    3 bits     u8 bits b; a stream of codes of b bits, packed from the lowest bit of the first byte on
    4 raw      the bytes

An element has w bytes, little-endian. The writer keeps, and the reader demands, that a piece restores at most `MOST` bytes and at
most `EXPANSION` times what it takes, so that memory is bounded by the size of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from graphopt.coding import huffman, streams, text
from graphopt.coding.reader import Reader, varint
from graphopt.coding.streams import Coding
from graphopt.coding.text import Text
from graphopt.utils.errors import InputError

MOST = 1 << 24  # restored bytes
EXPANSION = 1 << 13
WIDTHS = (1, 2, 4, 8)
PLAIN, PLANES, TABLE, BITS, RAW = range(5)


class Place(NamedTuple):
    """Where a tensor lies in a file: bytes from `begin` to `end`, elements of `width` bytes or codes of `bits` bits, if given."""

    begin: int
    end: int
    width: int
    bits: int = 0


def encode(content: memoryview, places: Sequence[Place], coding: Coding) -> bytes:
    """A file whose tensors lie at `places`."""
    between, found, at = bytearray(), list[bytes](), 0
    for place in sorted(places):
        if not at <= place.begin <= place.end <= len(content):
            raise ValueError(f"{place} overlaps another or lies outside of {len(content)} bytes")
        between += content[at : place.begin]
        for start in range(place.begin, place.end, MOST):
            part = content[start : min(start + MOST, place.end)]
            found.append(varint(place.begin - at) + smallest(part, place, coding))
            at = place.begin
        at = place.end
    between += content[at:]
    return b"".join([text.encode(bytes(between)), varint(len(found)), *found])


def smallest(part: memoryview, place: Place, coding: Coding) -> bytes:
    """A piece of at most `MOST` bytes in its smallest form that the reader takes."""
    forms = [_raw(part), _plain(part)]
    if len(part) % place.width == 0:
        forms += [_planes(part, place.width, coding)]
        forms += [found for found in (_table(part, place.width, coding), _bits(part, place.bits, coding)) if found]
    return min((f for f in forms if len(part) <= EXPANSION * len(f)), key=len)


def _raw(part: memoryview) -> bytes:
    return bytes([RAW]) + varint(len(part)) + bytes(part)


def _plain(part: memoryview) -> bytes:
    coded = huffman.deflate(bytes(part))
    return bytes([PLAIN]) + varint(len(part)) + varint(len(coded)) + coded


def _planes(part: memoryview, width: int, coding: Coding) -> bytes:
    each = np.frombuffer(part, np.uint8).reshape(-1, width)
    coded = b"".join(streams.encode(np.ascontiguousarray(each[:, n]), coding) for n in range(width))
    return bytes([PLANES]) + varint(len(part)) + bytes([width]) + coded


def _table(part: memoryview, width: int, coding: Coding) -> bytes | None:
    entries, codes = np.unique(np.frombuffer(part, f"<u{width}"), return_inverse=True)
    if width == 1 or not 1 <= len(entries) <= 256:
        return None
    head = bytes([TABLE]) + varint(len(part)) + bytes([width, len(entries) - 1])
    return head + entries.tobytes() + streams.encode(codes.astype(np.uint8), coding)


def _bits(part: memoryview, bits: int, coding: Coding) -> bytes | None:
    if not 1 <= bits < 8:
        return None
    codes = unpacked(np.frombuffer(part, np.uint8), bits)
    if packed(codes, bits) != bytes(part):  # bits behind the last code are not zero
        return None
    return bytes([BITS]) + varint(len(part)) + bytes([bits]) + streams.encode(codes, coding)


def unpacked(content: streams.Bytes, bits: int) -> streams.Bytes:
    """As many codes as lie wholly in the bytes, u8."""
    count = 8 * len(content) // bits
    each = np.unpackbits(content, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(each, axis=1, bitorder="little").reshape(-1)


def packed(codes: streams.Bytes, bits: int) -> bytes:
    each = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, :bits]
    return np.packbits(each.reshape(-1), bitorder="little").tobytes()


def restore(content: memoryview, size: int) -> Iterator[bytes]:
    """The bytes of a file, part by part.

    Raises:
        InputError: it is damaged, or is not of this size.
    """
    reader = Reader(content)
    between = Text(reader)
    left = size
    for _ in range(reader.varint(len(content))):
        gap = reader.varint(left)
        yield from between.parts(gap)
        part = decode(reader)
        left -= gap + len(part)
        if not part or left < 0:
            raise InputError(f"pieces give more than the {size} bytes announced")
        yield part
    if reader.at < len(content):
        raise InputError("bytes follow the last piece")
    yield from between.parts(left)
    between.finish()


def decode(reader: Reader) -> bytes:
    """What the next piece restores.

    Raises:
        InputError: it is damaged, or restores more than is allowed.
    """
    form, size = reader.byte(), reader.varint(MOST)
    if size > EXPANSION * (len(reader.content) - reader.at + 8):
        raise InputError(f"a piece announces {size} bytes, more than what is left can hold")
    if form == RAW:
        return bytes(reader.take(size))
    if form == PLAIN:
        return huffman.decode(reader.take(reader.varint(len(reader.content))), size).tobytes()
    if form == BITS:
        return _restored_bits(reader, size)
    if form not in (PLANES, TABLE):
        raise InputError(f"a piece has the form {form}, which does not exist")
    width = reader.byte()
    if width not in WIDTHS or size % width:
        raise InputError(f"a piece of {size} bytes has elements of {width}")
    count = size // width
    if form == PLANES:
        planes = [streams.decode(reader, count) for _ in range(width)]
        return planes[0].tobytes() if width == 1 else np.stack(planes, axis=1).tobytes()
    entries = np.frombuffer(reader.take(width * (reader.byte() + 1)), f"<u{width}")
    codes = streams.decode(reader, count)
    if count and int(codes.max()) >= len(entries):
        raise InputError(f"a code is {codes.max()}, its table has {len(entries)} entries")
    return entries.take(codes).tobytes()


def _restored_bits(reader: Reader, size: int) -> bytes:
    bits = reader.byte()
    if not 1 <= bits < 8:
        raise InputError(f"codes of {bits} bits are announced")
    codes = streams.decode(reader, 8 * size // bits)
    if len(codes) and int(codes.max()) >> bits:
        raise InputError(f"a code is {codes.max()}, which has more than {bits} bits")
    return packed(codes, bits).ljust(size, b"\0")

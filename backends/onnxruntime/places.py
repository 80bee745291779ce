"""Where the tensors of an ONNX file lie in it: the fields of its protobuf, walked without loading it.

    ModelProto.graph = 7    GraphProto.node = 1, .initializer = 5    NodeProto.attribute = 5    AttributeProto.t = 5
    TensorProto.data_type = 2, .raw_data = 9, .external_data = 13 (key = 1, value = 2)

Bytes of two packed codes to each (`MatMulNBits`, 4-bit types) are tried as such.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.coding.pieces import Place
from graphopt.coding.reader import Reader

SMALL = 128  # bytes of a tensor that is not worth a piece of its own
WIDTHS = {
    1: 4,
    2: 1,
    3: 1,
    4: 2,
    5: 2,
    6: 4,
    7: 8,
    9: 1,
    10: 2,
    11: 8,
    12: 4,
    13: 8,
    16: 2,
    21: 1,
    22: 1,
}  # by data_type
HALF_BYTES = 4
MOST = 2**35 - 1
Field = tuple[int, int, int]  # number, begin and end of its bytes; of a number the end is its value


def initializers(content: bytes) -> list[Place]:
    """The tensors in an ONNX file, but small ones."""
    whole = memoryview(content)
    found = []
    for begin, end in _tensors(whole):
        kind, raw, _ = _described(whole, begin, end)
        if kind in WIDTHS and raw is not None and raw[1] - raw[0] >= SMALL:
            found.append(_place(kind, *raw))
    return found


def external(content: bytes, location: str) -> list[Place]:
    """The tensors of an ONNX file that lie in another file of this name."""
    whole = memoryview(content)
    found = []
    for begin, end in _tensors(whole):
        kind, _, said = _described(whole, begin, end)
        if kind in WIDTHS and said.get("location") == location and int(said.get("length", 0)) >= SMALL:
            first = int(said.get("offset", 0))
            found.append(_place(kind, first, first + int(said["length"])))
    return found


def _place(kind: int, begin: int, end: int) -> Place:
    return Place(begin, end, WIDTHS[kind], HALF_BYTES if WIDTHS[kind] == 1 else 0)


def _tensors(content: memoryview) -> Iterator[tuple[int, int]]:
    for graph, begin, end in _fields(content, 0, len(content)):
        if graph != 7:
            continue
        for number, first, last in _fields(content, begin, end):
            if number == 5:
                yield first, last
            elif number == 1:
                attributes = [f for f in _fields(content, first, last) if f[0] == 5]
                for _, one, other in attributes:
                    yield from ((a, b) for n, a, b in _fields(content, one, other) if n == 5 and b > a)


def _described(content: memoryview, begin: int, end: int) -> tuple[int, tuple[int, int] | None, dict[str, str]]:
    """Of a TensorProto its type, where its raw bytes lie, and what it says of external ones."""
    kind, raw, said = 0, None, {}
    for number, first, last in _fields(content, begin, end):
        if number == 2:
            kind = last
        elif number == 9:
            raw = first, last
        elif number == 13:
            parts = {n: bytes(content[a:b]).decode() for n, a, b in _fields(content, first, last)}
            said[parts.get(1, "")] = parts.get(2, "")
    return kind, raw, said


def _fields(content: memoryview, begin: int, end: int) -> Iterator[Field]:
    """The fields of a message: of numbers the value stands in place of an end."""
    reader = Reader(content[:end])
    reader.at = begin
    while reader.at < end:
        key = reader.varint(MOST)
        wire = key & 7
        if wire == 0:
            yield key >> 3, reader.at, _number(reader)
        elif wire == 2:
            length = reader.varint(end)
            reader.take(length)
            yield key >> 3, reader.at - length, reader.at
        else:
            reader.take(8 if wire == 1 else 4)


def _number(reader: Reader) -> int:
    """A varint of up to ten bytes, as protobuf has them."""
    number = shift = 0
    while True:
        byte = reader.byte()
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number

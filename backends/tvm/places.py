"""Where the constants of a library lie in it, in the form in which TVM saves tensors (`include/tvm/runtime/tensor.h`):

    u64 magic, u64 0, i32 device type, i32 device, i32 dimensions, u8 type code, u8 bits, u16 lanes, i64 sizes, i64 bytes,
    then the bytes

Whatever looks like it is taken for one: a file that is coded is restored to the last byte, whether that was right or not.
"""

from __future__ import annotations

import math
import struct

from graphopt.coding.pieces import Place

MAGIC = struct.pack("<Q", 0xDD5E40F096B4A13F)
HEAD = struct.Struct("<QQiiiBBH")
SMALL = 128  # bytes that are not worth a piece of their own
MOST_DIMENSIONS = 8


def stored_tensors(content: bytes) -> list[Place]:
    """The tensors in a library, but small ones."""
    found, at = list[Place](), content.find(MAGIC)
    while at >= 0:
        place = _place(content, at)
        if place is not None and place.end - place.begin >= SMALL:
            found.append(place)
        at = content.find(MAGIC, at + 1 if place is None else place.end)
    return found


def _place(content: bytes, at: int) -> Place | None:
    if len(content) < at + HEAD.size:
        return None
    *_, dimensions, _, bits, lanes = HEAD.unpack_from(content, at)
    if not 0 <= dimensions <= MOST_DIMENSIONS or bits not in (8, 16, 32, 64) or lanes != 1:
        return None
    sizes = struct.Struct(f"<{dimensions + 1}q")
    begin = at + HEAD.size + sizes.size
    if len(content) < begin:
        return None
    *shape, length = sizes.unpack_from(content, at + HEAD.size)
    if length < 0 or length != math.prod(shape) * bits // 8 or begin + length > len(content):
        return None
    return Place(begin, begin + length, bits // 8)

"""Objects in ELF, as far as they are needed here: what one wants from outside, its size in memory, and one of data only.

Constants would be far larger as C source than they are, and slow to compile; so they become an object of their own, for the
same machine as another whose header is copied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.utils.errors import InputError

PROGBITS, SYMTAB, STRTAB = 1, 2, 3  # types of sections
ALLOCATED = 2  # flag of sections that are loaded
GLOBAL_OBJECT, UNDEFINED = 0x11, 0
IDENTITY = 16  # bytes that a header begins with


@dataclass(frozen=True)
class Section:
    name: int
    type: int
    flags: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Object:
    """An object file.

    Raises:
        InputError: it is none of ELF for little-endian machines.
    """

    data: bytes

    def __post_init__(self) -> None:
        if self.data[:4] != b"\x7fELF" or self.data[5] != 1:
            raise InputError(
                "objects are written for little-endian ELF systems, and LLVM made another kind for this triple"
            )

    @property
    def wide(self) -> bool:
        """Addresses have 64 bits."""
        return self.data[4] == 2

    @property
    def machine(self) -> int:
        return int(self._header[1])

    @property
    def flags(self) -> int:
        """What the machine's calling convention is, among others."""
        return int(self._header[6])

    @property
    def _header(self) -> tuple[int, ...]:
        return struct.unpack_from(_header_format(self.wide), self.data, IDENTITY)

    @property
    def loaded_bytes(self) -> int:
        """Of code and constants in memory."""
        return sum(s.size for s in self._sections() if s.flags & ALLOCATED)

    def undefined(self) -> list[str]:
        """Symbols that others have to define."""
        sections, found = list(self._sections()), []
        entry = "<IBBHQQ" if self.wide else "<IIIBBH"
        for table in (s for s in sections if s.type == SYMTAB):
            for fields in struct.iter_unpack(entry, self.data[table.offset : table.offset + table.size]):
                if fields[0] and fields[3 if self.wide else 5] == UNDEFINED:
                    start = sections[table.link].offset + fields[0]
                    found.append(self.data[start : self.data.index(b"\0", start)].decode())
        return sorted(found)

    def _sections(self) -> Iterator[Section]:
        offset, size, count = self._header[5], self._header[10], self._header[11]
        for number in range(count):
            name, kind, flags, _, at, length, link = struct.unpack_from(
                "<IIQQQQI" if self.wide else "<7I", self.data, offset + number * size
            )
            yield Section(name, kind, flags, at, length, link)


def data_object(symbol: str, content: bytes, alignment: int, like: Object) -> bytes:
    """An object that defines one read-only symbol, to be linked with `like`."""
    wide = like.wide
    names = f"\0.rodata.{symbol}\0.symtab\0.strtab\0.note.GNU-stack\0".encode()
    strings = f"\0{symbol}\0".encode()
    entry = (1, GLOBAL_OBJECT, 0, 1, 0, len(content)) if wide else (1, 0, len(content), GLOBAL_OBJECT, 0, 1)
    symbols = struct.pack("<IBBHQQ" if wide else "<IIIBBH", *[0] * 6)
    entry_bytes = len(symbols)
    symbols += struct.pack("<IBBHQQ" if wide else "<IIIBBH", *entry)
    header = IDENTITY + struct.calcsize(_header_format(wide))
    word = 8 if wide else 4
    placed: list[
        tuple[str, int, int, bytes, int, int, int, int]
    ] = [  # name, type, flags, ..., link, info, alignment, entry
        (f".rodata.{symbol}", PROGBITS, ALLOCATED, content, 0, 0, alignment, 0),
        (".symtab", SYMTAB, 0, symbols, 3, 1, word, entry_bytes),  # names in section 3; the first global is number 1
        (".strtab", STRTAB, 0, strings, 0, 0, 1, 0),
        (".strtab", STRTAB, 0, names, 0, 0, 1, 0),
        (".note.GNU-stack", PROGBITS, 0, b"", 0, 0, 1, 0),
    ]
    body, table = bytearray(header), bytearray(struct.calcsize(_section_format(wide)))
    for name, kind, flags, data, link, info, align, each in placed:
        body += bytes(-len(body) % align)
        at = names.index(name.encode() + b"\0")
        table += struct.pack(_section_format(wide), at, kind, flags, 0, len(body), len(data), link, info, align, each)
        body += data
    body += bytes(-len(body) % word)
    sizes = (header, 0, 0, struct.calcsize(_section_format(wide)), len(placed) + 1, 4)  # names of sections in section 4
    struct.pack_into(_header_format(wide), body, IDENTITY, 1, like.machine, 1, 0, 0, len(body), like.flags, *sizes)
    body[:IDENTITY] = like.data[:IDENTITY]
    return bytes(body + table)


def _header_format(wide: bool) -> str:
    """type, machine, version, entry, segments, sections, flags, then sizes and counts."""
    return "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"


def _section_format(wide: bool) -> str:
    return "<IIQQQQIIQQ" if wide else "<10I"

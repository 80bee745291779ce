"""Reading bytes that may be anything: every length is checked before it is used.

    reader = Reader(content)
    reader.byte(), reader.varint(most), reader.take(length)

A varint has seven bits of a number in each byte, the lowest first; the highest bit says that another byte follows.
"""

from __future__ import annotations

from graphopt.utils.errors import InputError

LONGEST = 5  # bytes of a varint


def varint(number: int) -> bytes:
    """A number of at least 0 and under 2^35, as `Reader.varint` reads it."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


class Reader:
    """Takes bytes from the front of `content`; `at` counts those taken."""

    def __init__(self, content: bytes | memoryview) -> None:
        self.content, self.at = memoryview(content), 0

    def take(self, length: int) -> memoryview:
        """The next bytes.

        Raises:
            InputError: there are not so many.
        """
        if not 0 <= length <= len(self.content) - self.at:
            raise InputError(f"{length} bytes are announced, {len(self.content) - self.at} are there")
        self.at += length
        return self.content[self.at - length : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        """The next number.

        Raises:
            InputError: it is greater than `most`, or longer than `LONGEST`.
        """
        number = 0
        for place in range(LONGEST):
            byte = self.byte()
            number |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                break
        else:
            raise InputError(f"a number has more than {LONGEST} bytes")
        if number > most:
            raise InputError(f"a number is {number}, at most {most} is allowed")
        return number

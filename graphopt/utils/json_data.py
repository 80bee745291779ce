"""JSON from a file that nobody vouches for, read within bounds.

What Python's own reader lets through and a later check could stumble over is refused here: keys that stand twice (one
reader takes the first, another the last), numbers that are none, nesting without end, text that cannot be written out.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DEPTH = 100  # of nesting; models nest about ten deep
BYTES = 2**30


def parse(content: bytes, *, limit: int = BYTES) -> Any:
    """The data of a JSON text in UTF-8.

    Raises:
        ValueError: it is no JSON, holds a key twice or a number that is not finite, nests deeper than `DEPTH`, or is longer
            than `limit` bytes.
    """
    if len(content) > limit:
        raise ValueError(f"JSON of {len(content)} bytes, more than {limit}")
    try:
        data = json.loads(
            content.decode(), object_pairs_hook=_object, parse_float=_finite, parse_constant=_not_a_number
        )
    except RecursionError:
        raise ValueError(f"JSON nested deeper than {DEPTH}") from None
    _check(data)
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _check(data: Any) -> None:
    """Nesting and text, level by level: a file can nest deeper than Python may call."""
    level = [data]
    for _ in range(DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii():
                value.encode()  # half a surrogate pair cannot be printed
        if not below:
            return
        level = below
    raise ValueError(f"JSON nested deeper than {DEPTH}")

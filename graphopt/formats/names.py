"""Number formats as text and as JSON, and back.

    parse("log8 16 to an octave per tensor") == parse("log8") == LogFormat(8)
    from_json(to_json(format)) == format

The text is what `str(format)` gives; what it leaves out has its default.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from graphopt.formats.block_floating import BlockFloat
from graphopt.formats.codebook import Codebook
from graphopt.formats.floating import FloatFormat
from graphopt.formats.logarithmic import LogFormat
from graphopt.formats.protocol import NumberFormat
from graphopt.formats.signs import Binary, Ternary
from graphopt.formats.uniform import Format
from graphopt.utils.errors import InputError, suggestion

KINDS: dict[str, Any] = {
    "uniform": Format,
    "log": LogFormat,
    "float": FloatFormat,
    "block float": BlockFloat,
    "codebook": Codebook,
    "binary": Binary,
    "ternary": Ternary,
}
EXAMPLES = (
    "s8 symmetric per channel",
    "u16 affine",
    "log8",
    "log4 1 to an octave",
    "float16",
    "float16 without subnormals",
    "bfloat16",
    "float8 e5m2",
    "block float 8 in blocks of 16",
    "codebook4 per channel",
    "binary per channel",
    "ternary two scales per channel",
)
_CHANNELS = r"(?: per (?P<per>channel|tensor))?"
_FORMS = {
    "uniform": rf"(?P<sign>[su])(?P<bits>\d+)(?: (?P<kind>symmetric|affine))?{_CHANNELS}(?P<power> power of two)?"
    r"(?P<full> full range)?",
    "log": rf"log(?P<bits>\d+)(?: (?P<steps>\d+) to an octave)?{_CHANNELS}",
    "float": r"(?:(?P<name>float16|bfloat16)|float\d+ e(?P<e>\d+)m(?P<m>\d+))(?P<flush> without subnormals)?",
    "block float": r"block float (?P<bits>\d+)(?: in blocks of (?P<block>\d+))?",
    "codebook": rf"codebook(?P<bits>\d+){_CHANNELS}",
    "binary": rf"binary{_CHANNELS}",
    "ternary": rf"ternary(?P<two> two scales)?{_CHANNELS}",
}


def parse(text: str) -> NumberFormat:
    """The format of this name.

    Raises:
        InputError: there is none; the message suggests the nearest and gives examples.
    """
    for kind, form in _FORMS.items():
        if (found := re.fullmatch(form, text.strip())) is not None:
            try:
                return _build(kind, found.groupdict())
            except ValueError as error:
                raise InputError(f"the number format {text!r} does not exist: {error}") from error
    hint = suggestion(text, EXAMPLES)
    raise InputError(
        f"unknown number format {text!r}; {hint}{'Examples' if hint else 'examples'}: {', '.join(EXAMPLES)}"
    )


def _build(kind: str, said: dict[str, str | None]) -> NumberFormat:
    numbers = {name: int(text) for name in ("bits", "steps", "block", "e", "m") if (text := said.get(name)) is not None}
    per_channel = said.get("per") == "channel"
    if kind == "uniform":
        symmetric = said["kind"] != "affine"
        return Format(
            numbers["bits"],
            said["sign"] == "s",
            symmetric,
            power_of_two=said["power"] is not None,
            full_range=said["full"] is not None,
            per_channel=per_channel,
        )
    if kind == "float":
        widths = {"float16": (5, 10), "bfloat16": (8, 7)}.get(said["name"] or "")
        return FloatFormat(*(widths or (numbers["e"], numbers["m"])), subnormals=said["flush"] is None)
    if kind == "block float":
        return BlockFloat(**numbers)
    if kind == "log":
        return LogFormat(numbers["bits"], per_channel, numbers.get("steps"))
    if kind == "binary":
        return Binary(per_channel)
    if kind == "ternary":
        return Ternary(per_channel, two_scales=said["two"] is not None)
    return Codebook(numbers["bits"], per_channel)


def to_json(format: NumberFormat) -> dict[str, Any]:
    """Plain data: `kind`, and the format's fields."""
    kind = next(name for name, form in KINDS.items() if isinstance(format, form))
    return {"kind": kind, **asdict(format)}  # type: ignore[call-overload]


def from_json(data: Any) -> NumberFormat:
    """The way back.

    Raises:
        InputError: an unknown kind, or fields that do not fit it.
    """
    try:
        fields = dict(data)
        found: NumberFormat = KINDS[fields.pop("kind")](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{data!r} describes no number format ({type(error).__name__}: {error})") from error
    return found

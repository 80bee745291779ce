"""Names and JSON of number formats."""

from __future__ import annotations

from typing import Any

import pytest
from number_formats import ALL

from graphopt.formats import (
    FLOAT16_WITHOUT_SUBNORMALS,
    BlockFloat,
    Codebook,
    FloatFormat,
    Format,
    LogFormat,
    NumberFormat,
    from_json,
    parse,
    to_json,
)
from graphopt.utils.errors import InputError


@ALL
def test_a_format_is_what_its_name_and_its_json_say(format: NumberFormat) -> None:
    assert parse(str(format)) == format
    assert from_json(to_json(format)) == format


def test_what_a_name_leaves_out_has_its_default() -> None:
    assert parse("log8") == LogFormat(8) == parse("log8 16 to an octave per tensor")
    assert parse("s8") == Format(8)
    assert parse("block float 4") == BlockFloat(4, block=16)
    assert parse("codebook4 per channel") == Codebook(4, per_channel=True)
    assert parse("float16 without subnormals") == FLOAT16_WITHOUT_SUBNORMALS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log 8", "did you mean 'log8'"), ("bflot16", "did you mean 'bfloat16'"), ("s17", "from 2 to 16, got 17"),
        ("codebook9", "from 2 to 8, got 9"), ("log16 1 to an octave", "take at least 256 steps"), ("", "; examples: "),
    ],
)  # fmt: skip
def test_unknown_names_say_what_there_is(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogFormat(1), lambda: LogFormat(8, steps=0), lambda: LogFormat(True), lambda: FloatFormat(9, 4),
        lambda: FloatFormat(8, 8), lambda: BlockFloat(17), lambda: BlockFloat(8, block=0), lambda: Codebook(1),
    ],
)  # fmt: skip
def test_formats_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|more than 16"):
        make()


@pytest.mark.parametrize("data", [{}, {"kind": "posit"}, {"kind": "log", "bits": 99}, {"kind": "log", "size": 8}, None])
def test_json_that_describes_no_format_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="describes no number format"):
        from_json(data)

"""What is no tensor comes back part by part, whichever form is smaller."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.coding import huffman, text
from graphopt.coding.reader import Reader
from graphopt.coding.text import DEFLATE, LZMA, Text
from graphopt.utils.errors import InputError


def long() -> bytes:
    """Repetitions far apart, which deflate does not see."""
    return np.random.default_rng(0).integers(0, 256, 60_000, np.uint8).tobytes() * 2


@pytest.mark.parametrize(("content", "kind"), [(b"node " * 9, DEFLATE), (long(), LZMA)])
def test_it_comes_back_in_parts(content: bytes, kind: int) -> None:
    coded = text.encode(content)
    assert coded[0] == kind
    found = Text(Reader(coded))
    half = len(content) // 2
    assert b"".join(found.parts(half)) == content[:half]
    assert b"".join(found.parts(len(content) - half)) == content[half:]
    found.finish()


@pytest.mark.parametrize("content", [b"node " * 9, long()[:70_000]])
def test_another_length_is_an_error(content: bytes) -> None:
    coded = text.encode(content)
    with pytest.raises(InputError, match="1 bytes too early"):
        list(Text(Reader(coded)).parts(len(content) + 1))
    short = Text(Reader(coded))
    list(short.parts(len(content) - 1))
    with pytest.raises(InputError, match="goes on behind"):
        short.finish()


@pytest.mark.parametrize("content", [b"a graph of nodes " * 9, long()[:3000] * 40])
def test_what_is_damaged_is_an_error_or_other_bytes(content: bytes) -> None:
    coded = text.encode(content)
    for place in [*range(min(len(coded), 300)), *range(300, len(coded), 97)]:
        changed = bytearray(coded)
        changed[place] ^= 0x41
        try:
            found = Text(Reader(bytes(changed)))
            assert len(b"".join(found.parts(len(content)))) == len(content)
            found.finish()
        except InputError:
            continue


def test_a_small_text_gives_no_more_than_is_asked_for() -> None:
    bomb = bytes([DEFLATE]) + text.varint(len(coded := huffman.deflate(bytes(10**8)))) + coded
    found = Text(Reader(bomb))
    assert [len(part) for part in found.parts(3 * text.PART // 2)] == [text.PART, text.PART // 2]
    with pytest.raises(InputError, match="goes on behind"):
        found.finish()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="the kind 7"):
        Text(Reader(b"\x07\x01x"))


def test_a_python_without_lzma_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = text.encode(long())
    monkeypatch.setattr(text, "lzma", None)
    with pytest.raises(InputError, match="built without"):
        Text(Reader(coded))
    assert text.encode(long())[0] == DEFLATE

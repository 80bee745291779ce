"""Files in a container come back to the last byte; whatever else is in it gives an error, and takes no memory."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from graphopt.coding import container, pieces
from graphopt.coding.container import MAGIC
from graphopt.coding.pieces import Place
from graphopt.coding.reader import Reader, varint
from graphopt.coding.streams import CODINGS, Coding
from graphopt.utils.errors import InputError


def contents() -> tuple[bytes, list[Place]]:
    """A file with text, shared floats mostly zero, codes, four-bit codes and floats that are all different."""
    random = np.random.default_rng(0)
    shared = np.where(random.random(400) < 0.8, 0, random.integers(-4, 4, 400) * 0.1).astype("<f4")
    codes = np.clip(np.round(random.normal(0, 4, 400)), -127, 127).astype(np.int8)
    halves = np.clip(np.round(random.normal(8, 1, 400)), 0, 15).astype(np.uint8)
    parts = [
        b"a graph " * 9,
        shared.tobytes(),
        codes.tobytes(),
        pieces.packed(halves, 4),
        random.normal(size=30).tobytes(),
    ]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    widths = [(4, 0), (1, 4), (1, 4), (8, 0)]
    places = [Place(*pair, *width) for pair, width in zip(itertools.pairwise(ends), widths, strict=True)]
    return b"".join(parts) + b"end", places


def written(folder: Path, coding: Coding = "entropy") -> Path:
    content, places = contents()
    (folder / "plain").write_bytes(content)
    (folder / "other").write_bytes(b"x")
    path = folder / "model.coded"
    container.write(path, {"a/model.onnx": folder / "plain", "b": folder / "other"}, {"a/model.onnx": places}, coding)
    return path


@pytest.mark.parametrize("coding", CODINGS)
def test_files_come_back(tmp_path: Path, coding: Coding) -> None:
    path = written(tmp_path, coding)
    found = container.restore(path, tmp_path / "out")
    content = contents()[0]
    assert (tmp_path / "out/a/model.onnx").read_bytes() == content
    assert (tmp_path / "out/b").read_bytes() == b"x"
    assert [(each.name, each.size) for each in found] == [("a/model.onnx", len(content)), ("b", 1)]
    assert container.entries(path) == found
    assert path.stat().st_size < 0.55 * len(content)


def test_each_tensor_has_the_form_that_suits_it() -> None:
    content, places = contents()
    forms = [pieces.smallest(memoryview(content)[p.begin : p.end], p, "entropy")[0] for p in places]
    assert forms[:3] == [pieces.TABLE, pieces.PLANES, pieces.BITS]


def damaged(path: Path, content: bytes) -> bool:
    """Whether a container of this content is refused; else what it gives is right."""
    path.write_bytes(content)
    try:
        found = container.restore(path, path.parent / "found")
    except InputError:
        return True
    assert [(path.parent / "found" / each.name).read_bytes() for each in found] == [contents()[0], b"x"]
    return False


def with_checksum(content: bytes) -> bytes:
    """As an attacker would write it, who knows the layout."""
    return content[:12] + container.checksum(memoryview(content)) + content[44:]


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_flipped_gives_an_error(tmp_path: Path, flip: int) -> None:
    whole = written(tmp_path).read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= flip
        assert damaged(tmp_path / "changed", bytes(changed)), place


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("flip", [0x01, 0x10, 0xFF])
def test_every_byte_flipped_under_a_right_checksum_gives_an_error_or_the_right_answer(
    tmp_path: Path, coding: Coding, flip: int
) -> None:
    whole = written(tmp_path, coding).read_bytes()
    for place in (*range(12), *range(44, len(whole))):
        changed = bytearray(whole)
        changed[place] ^= flip
        damaged(tmp_path / "changed", with_checksum(bytes(changed)))  # a name may be another and the files still right


def test_what_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    for length in range(0, len(whole), 7):
        assert damaged(tmp_path / "changed", whole[:length])
        assert length < 44 or damaged(tmp_path / "changed", with_checksum(whole[:length]))


def made(description: object, body: bytes) -> bytes:
    text = json.dumps(description).encode()
    return with_checksum(MAGIC + struct.pack("<I", len(text)) + bytes(32) + text + body)


def entry(size: int, coded: int) -> dict[str, object]:
    return {"size": size, "sha256": "0" * 64, "coded": coded}


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a\\b", "c:x", "a//b", "", "a/../b", "x\n"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "changed").write_bytes(made({"version": 1, "files": {name: entry(0, 0)}}, b""))
    with pytest.raises(InputError, match="damaged"):
        container.restore(tmp_path / "changed", tmp_path / "out")
    with pytest.raises(InputError, match="no name of a file"):
        container.write(tmp_path / "new", {name: tmp_path / "changed"}, {})


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"version": 2, "files": {}}, "upgrade graphopt"),
        ({"version": 1, "files": {"a": entry(2**50, 0)}}, "said to restore"),
        ({"version": 1, "files": {"a": entry(-1, 0)}}, "not described"),
        ({"version": 1, "files": {"a": entry(0, 3)}}, "bytes behind it"),
        ({"version": 1, "files": {"a": entry(0, 0), "a/b": entry(0, 0)}}, "folder of another"),
        ({"version": 1}, "damaged"),
        ([1], "damaged"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, description: object, says: str) -> None:
    (tmp_path / "changed").write_bytes(made(description, b""))
    with pytest.raises(InputError, match=says):
        container.restore(tmp_path / "changed", tmp_path / "out")


@pytest.mark.parametrize(
    "piece",
    [
        bytes([pieces.RAW]) + varint(pieces.MOST + 1),  # more than a piece may hold
        bytes([pieces.PLANES]) + varint(2**20) + bytes([1, 3, 0]),  # a megabyte of zeros from five bytes
        bytes([pieces.PLANES]) + varint(9) + bytes([2, 3, 0, 3, 0]),  # not so many elements
        bytes([pieces.PLANES]) + varint(9) + bytes([3, 3, 0]),  # no such width
        bytes([pieces.TABLE]) + varint(8) + bytes([4, 0, 1, 2, 3, 4, 3, 1]),  # a code that its table has not
        bytes([pieces.BITS]) + varint(8) + bytes([4, 3, 16]),  # a code of too many bits
        bytes([pieces.BITS]) + varint(8) + bytes([8, 3, 1]),  # no such bits
        bytes([pieces.PLANES]) + varint(8) + bytes([1, 4, 0, 1, 4, 0]),  # positions within positions
        bytes([9]) + varint(1),
        b"",
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_are_refused(piece: bytes) -> None:
    with pytest.raises(InputError):
        pieces.decode(Reader(piece))


def test_equal_bytes_are_stored_so_that_the_reader_takes_them() -> None:
    content = memoryview(bytes(2 * pieces.MOST + 5) + b"end")
    coded = pieces.encode(content, [Place(1, len(content) - 3, 4)], "entropy")
    parts = list(pieces.restore(memoryview(coded), len(content)))
    assert b"".join(parts) == content
    assert max(map(len, parts)) <= pieces.MOST
    assert len(coded) < 60_000


@pytest.mark.parametrize("size", [0, 9, 11])
def test_another_size_is_an_error(size: int) -> None:
    for places in ([], [Place(2, 8, 1)]):
        coded = memoryview(pieces.encode(memoryview(b"0123456789"), places, "entropy"))
        assert b"".join(pieces.restore(coded, 10)) == b"0123456789"
        with pytest.raises(InputError):
            list(pieces.restore(coded, size))
        with pytest.raises(InputError):
            list(pieces.restore(memoryview(bytes(coded) + b"x"), 10))


def test_a_place_that_overlaps_is_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        pieces.encode(memoryview(bytes(10)), [Place(0, 5, 1), Place(4, 8, 1)], "entropy")


def test_a_file_of_another_kind_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"PK" + bytes(100))
    with pytest.raises(InputError, match="does not begin with GRAPHCOD"):
        container.restore(tmp_path / "other", tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        container.restore(tmp_path / "missing", tmp_path)

"""Archives made to do harm: links, bombs, and contents that readers could differ about."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from hostile import (
    entries,
    link,
    lying_sizes,
    zipped,
)

from graphopt.ir.graph import Graph
from graphopt.utils import json_data
from graphopt.utils.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_archive_that_readers_could_differ_about_is_refused(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good = entries(path)
        for name, content in list(good.items())[:8]:
            rest: list[Any] = [(n, c) for n, c in good.items() if n != name]
            for twice in ([(name, content), *rest, (name, b"evil")], [(name, b"evil"), *rest, (name, content)]):
                (tmp_path / "bad.pt2").write_bytes(zipped(twice))
                with pytest.raises(InputError, match="twice"):
                    read(tmp_path / "bad.pt2")


def test_links_and_names_that_lead_elsewhere_are_refused(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good: list[Any] = list(entries(path).items())
        odd = ("../a", "/etc/a", "a/../../b", "a\\b", "C:a", "a/", "a\nb", "", "a\0b")
        for extra in (link("tensors/9", "/etc/passwd"), *((zipfile.ZipInfo(name), b"x") for name in odd)):
            extra[0].filename = extra[0].orig_filename  # the writer cuts names at NUL
            (tmp_path / "bad.pt2").write_bytes(zipped([*good, extra]))
            with pytest.raises(InputError):
                read(tmp_path / "bad.pt2")


def test_bombs_are_refused_before_they_unpack(saved: Path, program: Path, tmp_path: Path) -> None:
    for path, read in ((saved, Graph.load), (program, Graph.capture)):
        good: list[Any] = list(entries(path).items())
        root = good[0][0].partition("/")[0]
        bomb = zipped([*good, (f"{root}/data/weights/weight_99", bytes(2**26))], zipfile.ZIP_DEFLATED)
        assert len(bomb) < 2**20
        (tmp_path / "bad.pt2").write_bytes(bomb)
        with pytest.raises(InputError, match="would unpack to"):
            read(tmp_path / "bad.pt2")
        (tmp_path / "bad.pt2").write_bytes(lying_sizes(zipped(good), good[-1][0], 2**31))
        with pytest.raises(InputError):
            read(tmp_path / "bad.pt2")


def test_json_is_read_within_bounds() -> None:
    for text in (
        b"[" * 100_000, b"[" * 101 + b"]" * 101, b'{"a": 1, "a": 2}', b"NaN", b"[1e999]", b"-Infinity", b"9" * 5000, b'"\\ud800"',
        b"\xff",
        "[1]".encode("utf-16"), b"", b'{"a":' * 5000,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r""):
            json_data.parse(text)
    with pytest.raises(ValueError, match="more than 3"):
        json_data.parse(b"[1, 2]", limit=3)
    assert json_data.parse(b"[" * 99 + b"]" * 99)

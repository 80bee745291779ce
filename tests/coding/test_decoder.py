"""The decoder in C restores what the one in Python does, and refuses what is damaged without touching what is not its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_container import contents

import graphopt.coding
from graphopt.coding import pieces
from graphopt.coding.reader import Reader, varint
from graphopt.coding.streams import CODINGS, Coding

SOURCES = Path(graphopt.coding.__file__).parent
STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
CHECKED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "decoder.h"

/* Reads "u32 length, u32 room, piece" until the end; writes "u32 taken, u32 written, bytes" for each. */
int main(void) {
  uint32_t head[2];
  static struct graphopt_memory memory;
  while (fread(head, 4, 2, stdin) == 2) {
    uint8_t *piece = malloc(head[0] ? head[0] : 1), *out = malloc(head[1] ? head[1] : 1);
    size_t written = 0;
    if (fread(piece, 1, head[0], stdin) != head[0]) return 1;
    uint32_t said[2] = {(uint32_t)graphopt_piece(piece, head[0], out, head[1], &written, &memory), 0};
    said[1] = (uint32_t)written;
    fwrite(said, 4, 2, stdout);
    fwrite(out, 1, written, stdout);
    free(piece);
    free(out);
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "main.c").write_text(MAIN)
    command = [
        "gcc",
        *STRICT,
        f"-I{SOURCES}",
        str(folder / "main.c"),
        str(SOURCES / "decoder.c"),
        "-o",
        str(folder / "run"),
    ]
    if subprocess.run([*command, *CHECKED], capture_output=True, check=False).returncode:
        subprocess.run(command, check=True)  # a compiler without sanitizers
    return folder / "run"


def decoded(program: Path, given: list[tuple[bytes, int]]) -> list[tuple[int, bytes]]:
    """Of each piece and room for it what was taken, and what it gave."""
    asked = b"".join(np.array([len(piece), room], "<u4").tobytes() + piece for piece, room in given)
    found = subprocess.run([program], input=asked, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()[-2000:]
    reader, results = Reader(found.stdout), []
    for _ in given:
        taken, written = np.frombuffer(reader.take(8), "<u4").tolist()
        results.append((taken, bytes(reader.take(written))))
    return results


def samples(coding: Coding) -> list[bytes]:
    """Pieces of every form and of streams of every kind."""
    content, places = contents()
    whole = memoryview(content)
    found = [pieces.smallest(whole[p.begin : p.end], p, coding) for p in places]
    random = np.random.default_rng(3)
    large = np.clip(np.round(random.normal(0, 9, 70_000)), -127, 127).astype(np.int8)
    narrow = random.choice(4, 5000, p=[0.9, 0.05, 0.03, 0.02]).astype("<i4") * 7
    for array, bits in (
        (large, 0),
        (narrow, 0),
        (random.integers(0, 256, 600, np.uint8), 5),
        (np.zeros(999, np.uint8), 0),
    ):
        content = memoryview(array.tobytes())
        for form in (pieces._planes(content, array.itemsize, coding), pieces._plain(content), pieces._raw(content)):
            found.append(form)
        found += [f for f in (pieces._table(content, array.itemsize, coding), pieces._bits(content, bits, coding)) if f]
    return found


@pytest.mark.parametrize("coding", CODINGS)
def test_it_restores_what_python_restores(program: Path, coding: Coding) -> None:
    given = samples(coding)
    wanted = [pieces.decode(Reader(piece)) for piece in given]
    rooms = [(piece + b"more", len(restored)) for piece, restored in zip(given, wanted, strict=True)]
    for (taken, found), piece, restored in zip(decoded(program, rooms), given, wanted, strict=True):
        assert taken == len(piece)
        assert found == restored


def test_all_forms_and_kinds_are_among_the_samples() -> None:
    forms = {piece[0] for coding in CODINGS for piece in samples(coding)}
    assert forms == {pieces.PLAIN, pieces.PLANES, pieces.TABLE, pieces.BITS, pieces.RAW}


def test_too_little_room_is_refused(program: Path) -> None:
    given = samples("entropy")
    rooms = [(piece, len(pieces.decode(Reader(piece))) - 1) for piece in given]
    assert {taken for taken, _ in decoded(program, rooms)} == {0}


@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_damaged_is_refused_or_gives_as_many_bytes(program: Path, coding: Coding) -> None:
    """Run with sanitizers, where the compiler has them: no byte beyond either end is touched."""
    random, given = np.random.default_rng(5), []
    for piece in samples(coding):
        size = len(pieces.decode(Reader(piece)))
        for _ in range(60):
            changed = bytearray(piece)
            changed[random.integers(min(len(piece), 400))] ^= int(random.integers(1, 256))
            given.append((bytes(changed[: len(changed) - int(random.integers(0, 3))]), size))
    for (taken, found), (piece, size) in zip(decoded(program, given), given, strict=True):
        assert taken <= len(piece)
        assert len(found) <= size
        assert bool(taken) or not found


def test_a_bomb_is_refused(program: Path) -> None:
    (found,) = decoded(program, [(bytes([pieces.PLANES]) + varint(1 << 24) + bytes([1, 3, 0]), 1000)])
    assert found == (0, b"")

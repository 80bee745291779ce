"""Zip archives that nobody vouches for: what is in them, each entry once, within bounds set by the file's own size."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from graphopt.utils.errors import InputError, first_line

ENTRIES = 100_000
# Tensors hardly compress, JSON does; what is stored plainly, as graphopt and torch do, unpacks to less than the file.
EXPANSION, ALLOWANCE = 20, 2**24


def read(source: Path | IO[bytes], kind: str, name: str = "") -> dict[str, bytes]:
    """Every entry of an archive by name, in the archive's order.

    Each byte is read once, so what was checked is what is returned, whatever happens to the file meanwhile.

    Args:
        source: a file, or one that is open.
        kind: what messages say it should be, such as "a saved graph".
        name: what messages call it; the path by default.

    Raises:
        InputError: there is no such file, it is no archive, is damaged, or is such that readers could differ about it (a name
            twice), that it leads elsewhere (links, absolute names, `..`) or unpacks to far more than its size.
    """
    called = name or str(source)
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"no such file: {called}")
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            _check(entries, _size(archive), called)
            return {entry.filename: archive.read(entry) for entry in entries}
    except InputError:
        raise
    except Exception as error:  # of many kinds: the reader meets whatever bytes there are
        raise InputError(
            f"{called} is not {kind}, or is damaged ({type(error).__name__}: {first_line(error)})"
        ) from error


def _size(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, 2)


def _check(entries: list[zipfile.ZipInfo], size: int, called: str) -> None:
    if len(entries) > ENTRIES:
        raise InputError(f"{called} holds {len(entries)} entries, more than {ENTRIES}")
    names = set()
    for entry in entries:
        if entry.filename in names:
            raise InputError(f"{called} holds {entry.filename!r} twice; readers could take either")
        names.add(entry.filename)
        if (wrong := _wrong(entry)) is not None:
            raise InputError(f"{called} holds {entry.filename!r}, {wrong}")
    packed, unpacked = sum(e.compress_size for e in entries), sum(e.file_size for e in entries)
    if packed > size or unpacked > EXPANSION * size + ALLOWANCE:
        raise InputError(f"{called} has {size} bytes and would unpack to {unpacked}; save it again without compression")


def _wrong(entry: zipfile.ZipInfo) -> str | None:
    path = PurePosixPath(entry.filename)
    if entry.filename != entry.orig_filename or not entry.filename.isprintable():
        return "a name with control characters"
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        return "a name that leads out of the archive"
    if entry.is_dir() or stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "a folder or link instead of a file"
    if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "which is encrypted, or packed in an unusual way"
    return None

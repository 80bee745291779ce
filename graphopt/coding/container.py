"""Files as one file of coded pieces: written whole or not at all, read piece by piece, each file what it was to the last byte.

    write("model.coded", {"model.onnx": path}, {"model.onnx": places}, "entropy")
    restore("model.coded", folder)

Layout, all integers little-endian:

    bytes 0-7    "GRAPHCOD"
    bytes 8-11   length of the description, u32
    bytes 12-43  SHA-256 of everything else: bytes 0-11, then from byte 44 on
    from 44      the description, JSON: {"version": 1, "files": {name: {"size": bytes, "sha256": hex, "coded": bytes}}}
    then         each file (`pieces.py`), in the order of the description

Nothing in the file is executed. Sizes and tables are checked before memory is taken for them; one piece is held at a time. What
was restored is compared with its SHA-256, so that a reader gives the right bytes or an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from graphopt.coding import pieces, streams
from graphopt.coding.pieces import Place
from graphopt.coding.streams import Coding
from graphopt.utils import json_data
from graphopt.utils.errors import InputError
from graphopt.utils.files import sha256, write_atomically

MAGIC, VERSION = b"GRAPHCOD", 1
HEAD = struct.Struct("<8sI32s")
MOST_DESCRIPTION = 1 << 20


class Entry(NamedTuple):
    """One file: bytes and SHA-256 as it was, and the bytes of its pieces."""

    name: str
    size: int
    sha256: str
    coded: int


def write(
    path: str | Path, files: Mapping[str, Path], places: Mapping[str, Sequence[Place]], coding: Coding = "entropy"
) -> None:
    """Write files as one.

    Args:
        files: name -> where it is; names are relative paths with slashes.
        places: name -> where tensors lie in it; what is not listed has none.

    Raises:
        InputError: an unknown coding, a name that leads elsewhere, or a place that cannot be written.
    """
    streams.check(coding)
    described, body = {}, bytearray()
    for name, source in files.items():
        if not is_safe(name):
            raise InputError(f"{name!r} is no name of a file inside a folder")
        content, before = memoryview(source.read_bytes()), len(body)
        body += pieces.encode(content, places.get(name, ()), coding)
        described[name] = {"size": len(content), "sha256": sha256(source), "coded": len(body) - before}
    text = json.dumps({"version": VERSION, "files": described}, separators=(",", ":")).encode()
    length = struct.pack("<I", len(text))
    rest = text + bytes(body)
    write_atomically(path, MAGIC + length + hashlib.sha256(MAGIC + length + rest).digest() + rest)


def restore(path: str | Path, folder: Path) -> list[Entry]:
    """Write the files of a container into a folder; their names, sizes and checksums.

    Raises:
        InputError: no such file, another kind of file, one of a newer graphopt, or a damaged one. What was written by then stays.
    """
    content = _read(path)
    entries, at = _entries(content, path)
    for entry in entries:
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            digest = _restored(content[at : at + entry.coded], entry, file.write)
        if digest != entry.sha256:
            raise InputError(f"{path} is damaged ({entry.name} is not what was written); write it again")
        at += entry.coded
    return entries


def entries(path: str | Path) -> list[Entry]:
    """What files a container holds, without restoring them.

    Raises:
        InputError: as `restore`.
    """
    return _entries(_read(path), path)[0]


def is_safe(name: Any) -> bool:
    """Whether a name stays inside its folder, whatever the system."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[^\\:\x00-\x1f]{1,255}", name) is not None
        and not PurePosixPath(name).is_absolute()
        and not {"", ".", ".."} & set(name.split("/"))
    )


def _read(path: str | Path) -> memoryview:
    try:
        content = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if content[: len(MAGIC)] != MAGIC or len(content) < HEAD.size:
        raise InputError(f"{path} holds no coded files: it does not begin with {MAGIC.decode()}")
    if checksum(content) != content[12:44]:
        raise InputError(f"{path} is damaged (its checksum does not fit); write it again")
    return content


def checksum(content: memoryview) -> bytes:
    """Of a whole container but the checksum itself."""
    digest = hashlib.sha256(content[:12])
    digest.update(content[44:])
    return digest.digest()


def _entries(content: memoryview, path: str | Path) -> tuple[list[Entry], int]:
    """The files, and where their pieces begin."""
    length = HEAD.unpack_from(content)[1]
    try:
        if length > min(MOST_DESCRIPTION, len(content) - HEAD.size):
            raise ValueError(f"a description of {length} bytes")
        described = json_data.parse(bytes(content[HEAD.size : HEAD.size + length]))
        version = described["version"]
        if type(version) is not int or version <= VERSION:
            return _checked(described["files"], len(content) - HEAD.size - length), HEAD.size + length
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); write it again") from error
    raise InputError(f"{path} has layout {version}, this graphopt reads up to {VERSION}; upgrade graphopt")


def _checked(files: Mapping[str, Any], rest: int) -> list[Entry]:
    found = []
    for name, entry in files.items():
        size, digest, coded = entry["size"], entry["sha256"], entry["coded"]
        whole = all(type(n) is int and n >= 0 for n in (size, coded))
        if not is_safe(name) or not isinstance(digest, str) or len(entry) != 3 or not whole:
            raise ValueError(f"{str(name)[:80]!r} is not described as a file")
        if size > pieces.EXPANSION * (coded + 8):
            raise ValueError(f"{coded} bytes are said to restore {size}")
        found.append(Entry(name, size, digest, coded))
    folders = {str(folder) for entry in found for folder in PurePosixPath(entry.name).parents}
    if folders & {entry.name for entry in found}:
        raise ValueError("a file has the name of a folder of another")
    if sum(entry.coded for entry in found) != rest:
        raise ValueError(f"a description of other files than the {rest} bytes behind it")
    return found


def _restored(content: memoryview, entry: Entry, put: Callable[[bytes], object]) -> str:
    """The SHA-256 of what a coded file gives, which goes to `put` part by part."""
    digest = hashlib.sha256()
    for part in pieces.restore(content, entry.size):
        digest.update(part)
        put(part)
    return digest.hexdigest()

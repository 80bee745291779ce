"""Writing files and folders so that they appear whole or not at all.

A result is built beside its destination under a temporary name and renamed when it is complete, so an error, a full
disk or Ctrl-C leaves what was there before. A folder is only replaced where everything in it was written by graphopt.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt.utils import json_data
from graphopt.utils.errors import InputError

MANIFEST = "manifest.json"  # the file that marks a folder as one of ours and lists the others

_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would be larger than this file system allows; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "permission denied; choose a place you may write to",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def check_writable(path: str | Path) -> Path:
    """The absolute path, after making sure that a file or folder of this name can be written; cheap, so call it early.

    Raises:
        InputError: the parent is missing, is a file or is read-only, or something unwritable is there already.
    """
    target = Path(path).expanduser().resolve()
    parent = target.parent
    if not parent.exists():
        raise InputError(f"cannot write {target}: the folder {parent} does not exist; create it first")
    if not parent.is_dir():
        raise InputError(f"cannot write {target}: {parent} is a file, not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: the folder {parent} is read-only; choose another place")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {target}: it exists and is read-only; remove it or choose another name")
    return target


def write_atomically(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write one file: either `content` itself, or what `content(temporary_path)` writes.

    Raises:
        InputError: the place cannot be written, or the disk is full; the previous file is then still there.
    """
    target = check_writable(path)
    if target.is_dir():
        raise InputError(f"cannot write the file {target}: it is a folder; choose another name")
    temporary = _beside(target)
    with _explained(target):
        try:
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(content)
            _flush(temporary)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too must leave nothing behind
            temporary.unlink(missing_ok=True)
            raise


def check_replaceable(path: str | Path) -> Path:
    """The absolute path of a folder that `folder_atomically` may create or replace.

    Raises:
        InputError: the place cannot be written, is a file, or is a folder with anything graphopt did not write.
    """
    target = check_writable(path)
    if not target.exists():
        return target
    if not target.is_dir():
        raise InputError(f"cannot write the folder {target}: a file of this name exists; choose another name")
    foreign = _foreign(target)
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            f"{target} holds files that graphopt did not write ({shown}); choose a new or empty folder, or remove them"
        )
    return target


@contextmanager
def folder_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `path` at the end of the `with` block.

    Where the block raises, the temporary folder is removed and `path` stays as it was.

    Raises:
        InputError: as `check_replaceable`; or the disk is full.
    """
    target = check_replaceable(path)
    with _explained(target):
        temporary = _beside(target)
        try:
            temporary.mkdir()
            yield temporary
            _put(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _beside(target: Path) -> Path:
    # The same folder, because a rename is only atomic within one file system.
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")


def _put(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; what was there is kept until the new one stands."""
    if not target.exists():
        os.rename(temporary, target)
        return
    check_replaceable(target)  # it may have changed while the block ran
    old = _beside(target)
    try:
        os.rename(target, old)
        os.rename(temporary, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _foreign(folder: Path) -> list[str]:
    """The names in a folder that no manifest of ours lists."""
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    ours: set[str] = set()
    try:
        manifest = json_data.parse((folder / MANIFEST).read_bytes())
        if "graphopt" in manifest["versions"]:
            ours = {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no manifest, or not one of ours: then every file is foreign
    return [name for name in found if name not in ours]


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = _WRITE_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        raise InputError(f"cannot write {target}: {reason}") from error

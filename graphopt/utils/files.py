"""Writing files and folders so that they appear whole or not at all.

A result is built beside its destination under a temporary name and renamed when it is complete (`graphopt.utils.partial`), so
an error, a full disk, Ctrl-C or `kill -9` leaves what was there before. A folder is only replaced where everything in it was
written by graphopt. What is read while others may write is read by `steady`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from graphopt.utils import json_data, partial
from graphopt.utils.errors import ArtifactError, InputError
from graphopt.utils.quantities import few

T = TypeVar("T")

MANIFEST = "manifest.json"  # the file that marks a folder as one of ours and lists the others

ABSENT = 3  # times in a row that a folder was not there: there is none
ATTEMPTS = 100  # of reading a folder that is replaced meanwhile

_WRITE_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would be larger than this file system allows; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "permission denied; choose a place you may write to",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
_NO_FILES = "its folder takes no files; choose another place"  # as /proc: there, and nothing can be made in it


def check_writable(path: str | Path) -> Path:
    """The absolute path, after making sure that a file or folder of this name can be written; cheap, so call it early.

    A file is made beside it and removed again: only that tells of a file system that takes none, as `/proc`.

    Raises:
        InputError: the parent is missing, is a file or takes no files, or something that cannot be replaced is there already.
    """
    target = _absolute(path)
    with _explained(target, every=True):
        parent = target.parent
        if not parent.exists():
            raise InputError(f"cannot write {target}: the folder {parent} does not exist; create it first")
        if not parent.is_dir():
            raise InputError(f"cannot write {target}: {parent} is a file, not a folder; choose another place")
        _check_open(target, parent)
        if _read_only(target):
            raise InputError(f"cannot write {target}: it exists and is read-only; remove it or choose another name")
        if (mode := _mode(target)) is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"cannot write {target}: it is neither a file nor a folder; choose another name")
        partial.probe(target)
    return target


def check_file(path: str | Path) -> Path:
    """`check_writable`, for a name that is to be a file's.

    Raises:
        InputError: as `check_writable`; or a folder has the name.
    """
    target = check_writable(path)
    if target.is_dir():
        raise InputError(f"cannot write the file {target}: it is a folder; choose another name")
    return target


def check_folder(path: str | Path) -> Path:
    """The absolute path of a folder that files are to be added to, after making sure that they can be; cheap, so call it early.

    Where it is missing it can be made, with its parents.

    Raises:
        InputError: it, or the nearest folder above it that is there, is a file or takes no files.
    """
    target = _absolute(path)
    with _explained(target, every=True):
        there = next(folder for folder in (target, *target.parents) if _mode(folder) is not None)
        if not there.is_dir():
            which = "it" if there == target else there
            raise InputError(f"cannot write the folder {target}: {which} is a file, not a folder; choose another place")
        _check_open(target, there)
        partial.probe(there / "any")
    return target


def make_folder(path: str | Path) -> Path:
    """The absolute path of a folder that files are to be added to, made with its parents where it is missing.

    Raises:
        InputError: as `check_folder`.
    """
    target = check_folder(path)
    with _explained(target, every=True):
        target.mkdir(parents=True, exist_ok=True)
    return target


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, no such user, a character of no name
        raise InputError(f"cannot write {str(path)!r}: {error}; choose another place") from error


def _mode(path: Path) -> int | None:
    """What kind of thing has this name, as `stat` tells; None where nothing has. One look: others may replace it meanwhile."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_open(target: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {target}: the folder {folder} is read-only; choose another place")


def _read_only(target: Path) -> bool:
    """Whether something unwritable is there. What another writer is just replacing cannot be accessed either while it is away."""
    try:
        before = target.stat()
        return not os.access(target, os.W_OK) and os.path.samestat(before, target.stat())
    except FileNotFoundError:
        return False


def write_atomically(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write one file: either `content` itself, or what `content(temporary_path)` writes.

    Raises:
        InputError: the place cannot be written, or the disk is full; the previous file is then still there.
    """
    target = check_file(path)
    with _explained(target), partial.partial(target, folder=False) as temporary:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        _flush(temporary)
        partial.put(temporary, target)


def write_tensors(path: str | Path, content: Any) -> None:
    """Write tensors and plain values as `torch.save` does, whole or not at all.

    Raises:
        InputError: as `write_atomically`. Torch hides that a disk is full in an error of its own, which is translated.
    """
    import torch

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    write_atomically(path, save)


def check_replaceable(path: str | Path) -> Path:
    """The absolute path of a folder that `folder_atomically` may create or replace.

    Raises:
        InputError: the place cannot be written, is a file, or is a folder with anything graphopt did not write.
    """
    target = check_writable(path)
    mode = _mode(target)
    if mode is None:
        return target
    if not stat.S_ISDIR(mode):
        raise InputError(f"cannot write the folder {target}: a file of this name exists; choose another name")
    foreign = steady(target, lambda: _foreign(target))
    if foreign:
        shown = few(foreign, 3)
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
    with _explained(target), partial.partial(target, folder=True) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        check_replaceable(target)  # it may have changed while the block ran
        partial.put(temporary, target)


def identity(folder: Path) -> tuple[int, ...]:
    """What tells a folder of ours from one that took its place, whatever is in it; empty where there is none."""
    try:
        return tuple(
            n for s in (folder.stat(), (folder / MANIFEST).stat()) for n in (s.st_dev, s.st_ino, s.st_ctime_ns)
        )
    except OSError:
        return ()


def steady(folder: Path, read: Callable[[], T]) -> T:
    """What `read` makes of a folder that others may replace meanwhile: it reads again where that happened.

    Raises:
        ArtifactError: it was replaced during each of many attempts. Whatever `read` raises, where it was not replaced.
    """
    if not folder.exists():
        partial.sweep(folder)  # a writer may have died between two renames
    absent = 0
    for _ in range(ATTEMPTS):
        there, before = folder.exists(), identity(folder)
        if not before and partial.moved_aside(folder):
            time.sleep(0.01)
            continue
        try:
            found = read()
        except Exception:
            if identity(folder) == before and (there or absent >= ABSENT):
                raise
            if not there:  # nothing is there, or one writer has just put it in place and the next moved it away
                absent += 1
                time.sleep(0.01)
        else:
            if identity(folder) == before:
                return found
    raise ArtifactError(f"{folder} is replaced again and again while it is read; wait until its writer is done")


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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


def hindrance(error: OSError) -> str | None:
    """Why something could not be written, and what to do; None where the error is of another kind."""
    return _WRITE_ERRORS.get(error.errno or 0)


@contextmanager
def _explained(target: Path, *, every: bool = False) -> Iterator[None]:
    """Say what hinders writing; `every`: also of errors of which it is not known beforehand that they are about that."""
    try:
        yield
    except OSError as error:
        reason = hindrance(error)
        if reason is None and every:
            reason = _NO_FILES if isinstance(error, FileNotFoundError) else f"{error.strerror}; choose another place"
        if reason is None:
            raise
        raise InputError(f"cannot write {target}: {reason}") from error

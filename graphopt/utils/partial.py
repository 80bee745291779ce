"""Temporary files and folders beside a destination, and the rename that puts one in its place.

    with partial(path, folder=True) as temporary:       # .deployed.0f3a9c51.partial
        ...                                             # fill it
        put(temporary, path)                            # one rename: readers see the old one or the new one

A temporary one is locked while its writer lives, so the next writer of the same destination can tell what a dead one left
behind (killed, or the power failed) and removes it. Two writers never share a name; the last to finish wins.

A folder that exists is exchanged with the new one in one step where system and file system can (Linux, macOS). Elsewhere it takes
two renames; the old folder is named `.deployed.0f3a9c51.previous` between them, and the next reader or writer puts it back
if the writer died there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is swept
    fcntl = None  # type: ignore[assignment]

PARTIAL, PREVIOUS = "partial", "previous"
_HERE = -2 if sys.platform == "darwin" else -100  # AT_FDCWD: paths as they are
_SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_RACED = frozenset({errno.EEXIST, errno.ENOTEMPTY})  # another writer was faster


@contextmanager
def partial(target: Path, *, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside `target`; what has its name at the end of the `with` block is removed."""
    sweep(target)
    temporary, handle = _make(target, folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if handle is not None:
            os.close(handle)


def probe(target: Path) -> None:
    """Make an empty file beside `target` and remove it.

    Raises:
        OSError: no file can be made there.
    """
    path = _name(target, PARTIAL)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    _remove(path)


def put(temporary: Path, target: Path) -> None:
    """Rename a file or folder to `target`. A folder that was there has the temporary name afterwards."""
    if not temporary.is_dir():
        os.replace(temporary, target)
        return
    while not (_replace(temporary, target) or _create(temporary, target)):
        pass  # other writers created, replaced or removed it between two steps


def sweep(target: Path) -> None:
    """Remove what dead writers of `target` left beside it; put back a folder that one had moved aside."""
    with contextlib.suppress(OSError):  # what cannot be listed or removed stays
        for path in _left(target):
            with _locked(path) as dead:
                if dead and path.name.endswith(PREVIOUS) and not target.exists():
                    os.rename(path, target)
                elif dead:
                    _remove(path)


def moved_aside(target: Path) -> bool:
    """Whether a writer is between the two renames that replace a folder."""
    try:
        return any(path.name.endswith(PREVIOUS) for path in _left(target))
    except OSError:
        return False


def _left(target: Path) -> list[Path]:
    ours = re.compile(rf"\.{re.escape(target.name[:100])}\.[0-9a-f]{{8}}\.({PARTIAL}|{PREVIOUS})")
    return [p for p in target.parent.iterdir() if ours.fullmatch(p.name) and not p.is_symlink()]


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot.

    Raises:
        OSError: FileNotFoundError where one is missing, and others.
    """
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    call = getattr(libc, "renameatx_np" if sys.platform == "darwin" else "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _SWAP) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace(temporary: Path, target: Path) -> bool:
    """Put a folder in the place of another one; False where there is none."""
    try:
        if not exchange(temporary, target):
            _by_two_renames(temporary, target)
    except OSError as error:
        if error.errno not in _RACED and not (error.errno == errno.ENOENT and temporary.exists()):
            raise
        return False
    return True


def _create(temporary: Path, target: Path) -> bool:
    """Put a folder where there is none; False where there is one."""
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in _RACED:
            raise
        return False
    return True


def _by_two_renames(temporary: Path, target: Path) -> None:
    """As `exchange`, with a moment between in which there is no `target`."""
    with _locked(target):
        aside = _name(target, PREVIOUS)
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # where another writer's stands there, ours is outdated
                os.rename(aside, target)
            _remove(aside)
            raise
        os.rename(aside, temporary)


def _make(target: Path, folder: bool) -> tuple[Path, int | None]:
    while True:
        path = _name(target, PARTIAL)
        if folder:
            path.mkdir()
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        if fcntl is None:
            return path, None
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            handle = os.open(path, os.O_RDONLY)
            _lock(handle, wait=True)
            if path.exists():
                return path, handle
            os.close(handle)


def _name(target: Path, kind: str) -> Path:
    # The same folder, because a rename is only atomic within one file system.
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.{kind}")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock on a file or folder could be had, which is held until the end of the block."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        yield False
        return
    try:
        yield _lock(handle, wait=False)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held, or the file system knows no locks
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()

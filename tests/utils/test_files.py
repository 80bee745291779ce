import errno
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphopt.utils.errors import InputError
from graphopt.utils.files import (
    check_file,
    check_folder,
    check_replaceable,
    check_writable,
    folder_atomically,
    make_folder,
    sha256,
    write_atomically,
    write_tensors,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def make_result(folder: Path, **files: str) -> None:
    folder.mkdir()
    manifest = {"versions": {"graphopt": "0.1.0"}, "files": {name: {} for name in files}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, content in files.items():
        (folder / name).write_text(content)


def test_a_file_is_written_from_bytes_or_by_a_function(tmp_path: Path) -> None:
    def two(path: Path) -> None:
        path.write_bytes(b"two")

    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "b", two)
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"one", b"two")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_previous_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", fail)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code, says", [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota")])
def test_a_full_disk_is_a_clear_error(tmp_path: Path, code: int, says: str) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(InputError, match=says):
        write_atomically(tmp_path / "a", full)
    with pytest.raises(InputError, match=says), folder_atomically(tmp_path / "out") as folder:
        full(folder / "x")
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_tensors_that_do_not_fit_on_the_disk_are_the_same_error(tmp_path: Path) -> None:
    resource = importlib.import_module("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_tensors(tmp_path / "a", {"x": torch.ones(4)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*a: the file would be larger"):
            write_tensors(tmp_path / "a", {"x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(torch.load(tmp_path / "a", weights_only=True)["x"], torch.ones(4))
    assert names(tmp_path) == ["a"]


def test_an_error_that_has_nothing_to_do_with_writing_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folder_atomically(tmp_path / "out"):
        (tmp_path / "missing").read_text()


def test_writability_is_checked_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="does not exist; create it first"):
        check_writable(tmp_path / "missing" / "out")
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="it is a folder"):
        write_atomically(tmp_path, b"")
    assert check_writable(tmp_path / "fine") == tmp_path / "fine"


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod does not bind root
    with pytest.raises(InputError, match="read-only"):
        check_writable(tmp_path / "out")


def no_such_file(*_: object, **__: object) -> int:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


@pytest.mark.parametrize("check", [check_writable, check_file, check_folder, check_replaceable])
def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], Path]
) -> None:
    """As /proc: it is there, nobody calls it read-only, and nothing can be made in it."""
    assert check(tmp_path / "out") == tmp_path / "out"
    assert names(tmp_path) == []
    monkeypatch.setattr(os, "open", no_such_file)
    with pytest.raises(InputError, match="its folder takes no files; choose another place"):
        check(tmp_path / "out")


@pytest.mark.parametrize("check", [check_writable, check_folder, make_folder])
@pytest.mark.parametrize(
    "name, says",
    [
        ("file/out", "is a file, not a folder"),
        ("x" * 300, "name is too long"),
        ("a\0b", "null byte"),
        ("circle/out", "loop|Too many levels"),
    ],
    ids=["file", "long", "null", "circle"],
)
def test_a_name_that_nothing_can_have_is_refused(
    tmp_path: Path, check: Callable[[Path], Path], name: str, says: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(InputError, match=says):
        check(tmp_path / name)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        write_atomically(tmp_path / "pipe", b"")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_to_add_to_is_made_with_its_parents(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path) == []
    for _ in range(2):
        assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        make_folder(tmp_path / "a" / "file")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_atomically(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert names(out) == ["a"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    make_result(tmp_path / "out", model="old")
    with pytest.raises(type(error)), folder_atomically(tmp_path / "out") as folder:
        (folder / "model").write_text("new")
        raise error
    assert (tmp_path / "out" / "model").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_our_own_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    make_result(tmp_path / "out", model="old", extra="old")
    with folder_atomically(tmp_path / "out") as folder:
        (folder / "model").write_text("new")
    assert names(tmp_path / "out") == ["model"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with folder_atomically(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_with_other_files_is_never_touched(tmp_path: Path) -> None:
    make_result(tmp_path / "out", model="old")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"did not write \(notes.txt\)"), folder_atomically(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_manifest_of_another_program_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a browser extension"}')
    with pytest.raises(InputError, match="did not write"), folder_atomically(tmp_path / "out"):
        pass


def test_files_that_arrive_while_the_folder_is_filled_survive(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="did not write"), folder_atomically(out) as folder:
        (folder / "a").write_text("1")
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["notes.txt"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("back", [True, False])
def test_a_folder_that_another_writer_replaces_meanwhile_is_not_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    target, access = tmp_path / "deployed", os.access
    target.mkdir()

    def away(path: str | Path, mode: int) -> bool:
        """The folder is away while it is asked for, and then another one, or none, is there."""
        if Path(path) == target:
            target.rename(tmp_path / "previous")
            answer = access(path, mode)
            if back:
                target.mkdir()
            return answer
        return access(path, mode)

    monkeypatch.setattr(os, "access", away)
    assert check_writable(target) == target

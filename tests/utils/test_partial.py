"""Replacing files and folders while processes are killed, write at once and read."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphopt.utils import partial
from graphopt.utils.errors import InputError
from graphopt.utils.files import folder_atomically, steady, write_atomically

# Each version of the folder has three files that say which version they are of, one of them below another folder.
WRITER = """
import json, random, sys
from pathlib import Path
from graphopt.utils import partial
from graphopt.utils.files import folder_atomically, write_atomically

target, seed, exchanging, times = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange", int(sys.argv[4])
if not exchanging:
    real = partial.exchange
    partial.exchange = lambda one, other: not other.exists() and real(one, other)  # which raises
print("ready", flush=True)
for number in range(times):
    text = f"{seed}-{number}-" * random.Random(seed + number).randint(1, 3000)
    if target.suffix == ".file":
        write_atomically(target, text.encode() + b"end")
        continue
    with folder_atomically(target) as folder:
        (folder / "below").mkdir()
        names = ["a", "b", "below/c"]
        for name in names:
            (folder / name).write_text(text)
        (folder / "manifest.json").write_text(json.dumps({"versions": {"graphopt": "1"}, "files": {n: {} for n in names}}))
"""


def writer(target: Path, seed: int, how: str = "exchange", times: int = 10**9) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(target), str(seed), how, str(times)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def version(folder: Path) -> str:
    """The version that all files are of."""
    if folder.suffix == ".file":
        assert folder.read_text().endswith("end"), "the file is cut short"
        return folder.read_text()
    names = json.loads((folder / "manifest.json").read_text())["files"]
    texts = {(folder / name).read_text() for name in names}
    assert (len(texts), len(names)) == (1, 3), "files of two versions lie together"
    return texts.pop()


def left_beside(target: Path) -> list[str]:
    return [p.name for p in target.parent.iterdir() if p != target]


@pytest.fixture
def two_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange folders."""
    real = partial.exchange

    def cannot(one: Path, other: Path) -> bool:
        if not other.exists():
            return real(one, other)  # raises
        return False

    monkeypatch.setattr(partial, "exchange", cannot)


@pytest.fixture(params=["exchange", "two renames"])
def how(request: pytest.FixtureRequest) -> str:
    if request.param == "two renames":
        request.getfixturevalue("two_renames")
    return str(request.param)


def test_folders_swap_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert partial.exchange(tmp_path / "one", tmp_path / "other")
    assert [(tmp_path / name / "file").read_text() for name in ("one", "other")] == ["other", "one"]
    with pytest.raises(FileNotFoundError):
        partial.exchange(tmp_path / "one", tmp_path / "missing")


def kill_some(target: Path, how: str, times: int) -> None:
    chance, versions = random.Random(1), set()
    for number in range(20 * times):  # more than `times` only where the machine is too busy for writers to get that far
        if number >= times and len(versions) > times / 4:
            break
        process = writer(target, number, how)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        partial.sweep(target)  # as the next reader or writer does
        if target.exists():
            versions.add(version(target))
        else:
            assert not versions, "there was one, and it is gone"
        assert len(left_beside(target)) <= 2, "what dead writers left is not swept"
    assert len(versions) > times / 4, "the kills came before anything was written"
    with folder_atomically(target) if target.suffix != ".file" else partial.partial(target, folder=False):
        pass
    assert left_beside(target) == []


@pytest.mark.parametrize(("name", "times"), [("deployed", 5), ("model.file", 12)])
def test_a_killed_writer_leaves_the_old_or_the_new_one(tmp_path: Path, name: str, times: int) -> None:
    kill_some(tmp_path / name, "exchange", times)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, how, times", [("deployed", "exchange", 100), ("deployed", "two renames", 70), ("model.file", "exchange", 30)]
)
def test_so_does_each_of_two_hundred(tmp_path: Path, name: str, how: str, times: int) -> None:
    kill_some(tmp_path / name, how, times)


@pytest.mark.thorough
def test_four_writers_succeed_and_four_readers_always_read_one_version(tmp_path: Path, how: str) -> None:
    target = tmp_path / "deployed"
    first = writer(target, 99, how, times=1)
    assert first.wait(30) == 0
    writers = [writer(target, 1000 * seed, how, times=60) for seed in range(4)]
    read = set()
    while any(process.poll() is None for process in writers):
        read.add(steady(target, lambda: version(target)))
    assert [process.wait(60) for process in writers] == [0] * 4
    for process in [first, *writers]:
        process.stdout.close()  # type: ignore[union-attr]
    assert len(read) > 20
    assert left_beside(target) == []


def test_a_reader_between_the_gaps_of_two_writers_reads_again(tmp_path: Path) -> None:
    """Absent when looked at, then there, then moved away while it is read, then there for good."""
    target = tmp_path / "deployed"
    reads = iter([False, True])

    def read() -> str:
        if not next(reads):  # the second writer has moved it away
            raise FileNotFoundError(target)
        return "new"

    assert steady(target, read) == "new"
    with pytest.raises(FileNotFoundError):
        steady(target, lambda: (target / "manifest.json").read_text())


def test_what_a_living_writer_fills_is_not_swept(tmp_path: Path) -> None:
    with partial.partial(tmp_path / "a", folder=True) as one:
        with partial.partial(tmp_path / "a", folder=True) as other:
            assert one.exists() is other.exists() is True
        partial.sweep(tmp_path / "a")
        assert (one.exists(), other.exists()) == (True, False)
    assert left_beside(tmp_path / "a") == []


def test_only_names_of_ours_are_swept(tmp_path: Path) -> None:
    mine = [
        ".a.partial",
        ".a.0123456z.partial",
        ".ab.01234567.partial",
        "a.01234567.partial",
        ".a.01234567.partial.txt",
    ]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a.01234567.partial").symlink_to(tmp_path)
    (tmp_path / ".a.89abcdef.partial").write_text("left")
    write_atomically(tmp_path / "a", b"")
    assert sorted(left_beside(tmp_path / "a")) == sorted([*mine, ".a.01234567.partial"])


@pytest.mark.parametrize("which", [1, 2, 3])
def test_an_interruption_between_two_renames_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_renames: None, which: int
) -> None:
    out, rename, calls = tmp_path / "out", os.rename, 0

    def interrupted(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == which:
            raise KeyboardInterrupt
        rename(source, target)

    def write(text: str) -> None:
        with folder_atomically(out) as folder:
            (folder / "model").write_text(text)
            (folder / "manifest.json").write_text('{"versions": {"graphopt": "1"}, "files": {"model": {}}}')

    write("old")
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    monkeypatch.undo()
    assert (out / "model").read_text() == ("new" if which == 3 else "old")
    partial.sweep(out)
    assert left_beside(out) == []


def test_a_folder_that_a_dead_writer_moved_aside_is_put_back(tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / ".out.01234567.previous"
    aside.mkdir()
    (aside / "model").write_text("old")
    assert steady(out, lambda: (out / "model").read_text()) == "old"
    assert left_beside(out) == []


def test_a_reader_that_meets_an_error_of_its_own_is_not_asked_again(tmp_path: Path) -> None:
    calls = []

    def read() -> None:
        calls.append(1)
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        steady(tmp_path, read)
    assert len(calls) == 1

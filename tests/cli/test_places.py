"""Places that cannot be written are refused in one line by every command that writes, before its work begins."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from torch import nn

import graphopt
from graphopt.compiler import optimize as module
from graphopt.training import train
from graphopt.utils import partial
from graphopt.utils.errors import InputError

MODEL = ("optimize", "cli_models:net", "--input-shape", "1,3,8,8", "--target", "x86")
ANALYZE = ("analyze", *MODEL[1:])
COMMANDS = {
    "out": (*MODEL, "--out", "{}"),
    "report": (*MODEL, "--report", "{}.json"),
    "dump": (*MODEL, "--dump", "{}"),
    "cache": (*MODEL, "--cache", "{}"),
    "checkpoint": (*MODEL, "--checkpoint", "{}"),
    "options": (*MODEL, "--save-config", "{}"),
    "analysis": (*ANALYZE, "--json", "{}.json"),
    "plots": (*ANALYZE, "--plots", "{}"),
    "comparison": ("compare", "deployed", "deployed", "--json", "{}.json"),
    "profile": ("profile", "deployed", "--json", "{}.json"),
    "audit": ("audit", "deployed", "--json", "{}.json"),
    "fixed": ("audit", "deployed", "--fix", "{}.onnx"),
    "drawing": ("show", "model.pt2", "--svg", "{}.svg"),
    "demo": ("demo", "--out", "{}"),
    "doctor": ("doctor", "--json", "{}.json"),
}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that begins all the same is found out."""

    def begun(*_: Any, **__: Any) -> Any:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(module.stages, "capture", begun)
    monkeypatch.setattr("graphopt.demo.main.run", begun)
    monkeypatch.setattr("graphopt.compiler.doctor.examine", begun)
    monkeypatch.setattr(module, "load", begun)
    monkeypatch.setattr("graphopt.artifacts.drawing.draw", begun)


def refuse(target: Path) -> None:
    """As /proc does, which is there and takes no files."""
    raise FileNotFoundError(2, "No such file or directory", str(target))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_place_that_takes_no_files(
    command: str, no_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("deployed").mkdir()
    Path("model.pt2").write_bytes(b"")
    monkeypatch.setattr(partial, "probe", refuse)
    result = run(*(word.format("there") for word in COMMANDS[command]))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot write" in result.stderr
    assert "its folder takes no files; choose another place" in result.stderr


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("place", ["/proc/x", "/proc/self/x", "/dev/null/x", "x" * 300])
def test_the_places_of_this_system_are_known(place: str, no_work: None) -> None:
    for option in ("--out", "--dump", "--cache", "--checkpoint"):
        result = run(*MODEL, option, place)
        assert result.exit_code == 1
        assert result.stderr.startswith("graphopt: error: cannot write "), option


def test_a_log_that_cannot_be_written_is_refused(no_work: None) -> None:
    for place in ("/dev/null/x", "nowhere/x", "."):
        said = run(*MODEL, "--log-file", place).stderr
        assert said.startswith(f"graphopt: error: cannot write --log-file {place}: ")
        assert said.endswith("choose another place\n")


def test_a_training_is_refused_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    graph = graphopt.Graph.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3))
    with pytest.raises(InputError, match="is a file, not a folder"):
        train(graph, (torch.randn(4, 3), torch.zeros(4).long()), checkpoint=tmp_path / "file" / "kept")


@pytest.mark.parametrize(("name", "begins"), [("r.json", "{"), ("r", "{"), ("r.html", "<!doctype"), ("r.txt", "Net")])
def test_a_report_is_written_as_its_name_ends(name: str, begins: str, optimize_call: dict[str, Any]) -> None:
    assert run("optimize", "cli_models:net", "--report", name, "--quiet").exit_code == 0
    assert Path(name).read_text().strip().lower().startswith(begins.lower())


def test_a_report_of_another_ending_is_refused_before_the_work(optimize_call: dict[str, Any]) -> None:
    result = run("optimize", "cli_models:net", "--report", "report.pdf")
    assert "what to write into report.pdf its name does not tell; let it end in one of .json, .html, .htm, .txt" in (
        result.stderr
    )
    assert "model" not in optimize_call


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write in the temporary folder "),
        (
            OSError(errno.EROFS, "Read-only file system", "/there/x"),
            "cannot write /there/x: the file system is read-only",
        ),
    ],
)
def test_a_disk_that_fills_up_meanwhile_is_named(error: OSError, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(module.stages, "capture", full)
    result = run(*MODEL)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"graphopt: error: {says}")
    assert result.stderr.count("\n") == 1

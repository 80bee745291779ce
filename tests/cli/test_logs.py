"""`-v` and `--log-file`: what the library logs while a command runs. Without either it shows nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from graphopt.cli import main

MODELS = """
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3))
"""
JOB = ("optimize", "logged_models:net", "--target", "x86-avx2", "--input-shape", "1,3,8,8", "--no-measure")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logged_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def _job() -> Path:
    Path("job.yaml").write_text("target: arm")
    return Path("job.yaml")


def run(*arguments: str) -> Result:
    sys.modules.pop("logged_models", None)
    result = CliRunner().invoke(main.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_nothing_is_shown_that_was_not_asked_for() -> None:
    assert run(*JOB).stderr == ""
    assert not [h for h in logging.getLogger("graphopt").handlers if not isinstance(h, logging.NullHandler)]


def test_v_says_what_is_done_and_vv_every_change() -> None:
    once = run(*JOB, "-v").stderr
    for line in (
        "INFO graphopt.compiler.optimize: target x86-avx2, through onnxruntime",
        "INFO graphopt.utils.timings: capture begins",
        "INFO graphopt.passmanager.runner: pass 5 of 6: Quantize, ",
        "stays float (Tanh): tanh has no integer kernel",
        "WARNING graphopt.compiler.optimize: no calibration data was given",
    ):
        assert line in once
    assert "DEBUG" not in once
    twice = run("-v", *JOB, "-v").stderr
    assert "DEBUG graphopt.passmanager.runner: Quantize, 0: weights s7 symmetric per channel" in twice
    assert "DEBUG graphopt.fitting.fit: correcting biases 0: error" in twice


@pytest.mark.thorough
def test_a_file_holds_all_of_it_with_times_and_grows() -> None:
    assert "graphopt." not in run(*JOB, "--log-file", "all.log").stderr
    first = Path("all.log").read_text()
    assert first.startswith("20")
    assert " DEBUG graphopt.passmanager.runner: " in first
    run("--log-file", "all.log", "targets", "arm")
    run("--log-file", "all.log", *JOB)
    assert Path("all.log").read_text().startswith(first)
    assert len(Path("all.log").read_text()) > 1.5 * len(first)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_log_that_is_full_ends_and_the_command_goes_on() -> None:
    result = run(*JOB, "--log-file", "/dev/full")
    assert result.exit_code == 0
    assert result.stderr.count("--log-file /dev/full takes no more: the disk is full; free some space") == 1
    assert "Traceback" not in result.stderr


def test_a_log_that_cannot_be_written_is_refused_before_any_work() -> None:
    result = CliRunner().invoke(main.app, [*JOB, "--log-file", "missing/all.log"])
    assert result.exit_code == 1
    assert "cannot write --log-file missing/all.log: No such file or directory; choose another place" in result.stderr
    assert result.stdout == ""


def test_the_level_is_put_back() -> None:
    run("targets", "arm", "-vv")
    assert logging.getLogger("graphopt").level == logging.NOTSET


def test_the_library_alone_is_silent_and_its_loggers_are_those_of_its_modules() -> None:
    code = (
        "import logging, graphopt\n"
        "logging.getLogger('graphopt.compiler').warning('not shown')\n"
        "logging.basicConfig()\n"
        "logging.getLogger('graphopt.compiler').warning('shown')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:graphopt.compiler:shown\n"


COMMANDS = sorted(main.typer.main.get_command(main.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_all_have(command: str) -> None:
    shown = run(*(("run", str(_job())) if command == "run" else (command,)), "--help").output
    assert all(option in shown for option in ("--debug", "--verbose", "-v", "--log-file"))

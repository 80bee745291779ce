"""`graphopt run` and `--passes`: passes in text, in a function, in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from graphopt.cli import main

MODELS = """
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
"""
PIPELINE = """
from beside import ROUNDING
from graphopt.passes import Simplify
def pipeline(target, data): return [Simplify(), target, data, ROUNDING]
def other(target, data): return []
wrong = 3
"""
NET = "run_models:net"


@pytest.fixture
def call(optimize_call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `graphopt.optimize` was called with."""
    (tmp_path / "run_models.py").write_text(MODELS)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/steps.py").write_text(PIPELINE)
    (tmp_path / "jobs/beside.py").write_text("ROUNDING = 'gptq'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("steps", "beside", "jobs", "run_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return optimize_call


def graphopt(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, [*map(str, arguments)])


def test_a_file_of_python_defines_the_passes(call: dict[str, Any]) -> None:
    result = graphopt("run", "jobs/steps.py", NET, "--target", "x86", "--threads", "2")
    assert result.exit_code == 0, result.output
    assert call["passes"]("the target", "the data")[1:] == ["the target", "the data", "gptq"]
    assert (call["target"].name, call["threads"]) == ("x86", 2)


def test_a_text_of_passes_may_lie_in_a_file(call: dict[str, Any]) -> None:
    Path("plan.txt").write_text("prune{layers={'conv1': [0, 3]}},\n  simplify\n")
    result = graphopt("optimize", NET, "--passes", "plan.txt")
    assert result.exit_code == 0, result.output
    assert call["passes"] == "prune{layers={'conv1': [0, 3]}}, simplify"


def test_a_file_of_options_is_that_of_optimize(call: dict[str, Any]) -> None:
    Path("job.yaml").write_text(
        f"model: {NET}\ntarget: x86\nmean: [0.5, 0.5, 0.5]\npasses:\n  - simplify\n  - prune{{keep_ratio=0.6, steps=2}}\n"
    )
    result = graphopt("run", "job.yaml", "--threads", "3")
    assert result.exit_code == 0, result.output
    assert call["passes"] == "simplify,prune{keep_ratio=0.6, steps=2}"
    assert (call["target"].name, call["threads"], call["preprocessing"].mean) == ("x86", 3, (0.5, 0.5, 0.5))


def test_passes_may_be_a_function_by_name_or_in_a_file(call: dict[str, Any]) -> None:
    for name in ("jobs.steps:pipeline", "jobs/steps.py", "jobs/steps.py:other"):
        sys.path.insert(0, str(Path("jobs").resolve()))
        result = graphopt("optimize", NET, "--passes", name)
        assert result.exit_code == 0, result.output
        assert callable(call["passes"])
    assert call["passes"](None, None) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "job.toml"), "neither a .yaml file of options nor a .py file"),
        (("run", "none.yaml"), "there is no file none.yaml"),
        (("run", "none.py", NET), "there is no file none.py"),
        (("optimize", NET, "--passes", "none.txt"), "--passes none.txt cannot be read: No such file or directory"),
        (("optimize", NET, "--passes", "jobs/steps.py:pipelin"), "has no 'pipelin'; did you mean 'pipeline'?"),
        (("optimize", NET, "--passes", "jobs/steps.py:wrong"), "is a int, not a function of target and data"),
    ],
)
def test_what_defines_no_passes_is_refused(arguments: tuple[str, ...], complaint: str, call: dict[str, Any]) -> None:
    result = graphopt(*arguments)
    assert result.exit_code == 1
    assert complaint in result.output
    assert not call


def test_options_behind_the_file_are_those_of_optimize(call: dict[str, Any]) -> None:
    result = graphopt("run", "jobs/steps.py", NET, "--thraeds", "2")
    assert result.exit_code == 2
    assert "--thraeds" in result.output

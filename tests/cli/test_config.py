"""`--config` and `--save-config`: options in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from graphopt.cli import arguments, main
from graphopt.utils.errors import InputError

MODELS = """
from torch import nn
from graphopt.targets import find
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
MINE = find("x86").replace(name="mine")
"""


@pytest.fixture
def call(optimize_call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What `graphopt.optimize` was called with."""
    (tmp_path / "configured_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return optimize_call


def job(tmp_path: Path, text: str) -> Path:
    (tmp_path / "job.yaml").write_text(text)
    return tmp_path / "job.yaml"


def optimize(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, ["optimize", *map(str, arguments)])


JOB = """
model: configured_models:net
target: x86
max-drop: 0.5
input_shape: ["1,3,8,8"]
measure: false
samples: 32
"""


def test_options_come_from_the_file(call: dict[str, Any], tmp_path: Path) -> None:
    result = optimize("--config", job(tmp_path, JOB))
    assert result.exit_code == 0, result.output
    assert call["target"].name == "x86"
    assert (call["max_drop"], call["measure"], call["threads"]) == (0.5, False, 1)
    assert call["example"][0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("written", "shapes"),
    [
        ("1,3,8,8", [(1, 3, 8, 8)]),
        ("[1, 3, 8, 8]", [(1, 3, 8, 8)]),
        ('["1,3,8,8", "1,4:int64"]', [(1, 3, 8, 8), (1, 4)]),
        ("[[1, 3, 8, 8], [1, 4]]", [(1, 3, 8, 8), (1, 4)]),
        ("[[1, 3, 8, 8]]", [(1, 3, 8, 8)]),
        ("5", [(5,)]),
    ],
)
def test_shapes_may_be_text_or_lists(
    written: str, shapes: list[tuple[int, ...]], call: dict[str, Any], tmp_path: Path
) -> None:
    result = optimize("configured_models:net", "--config", job(tmp_path, f"input-shape: {written}"))
    assert result.exit_code == 0, result.output
    assert [tuple(each.shape) for each in call["example"]] == shapes


def test_the_command_line_counts_for_more(call: dict[str, Any], tmp_path: Path) -> None:
    result = optimize("--target", "arm", "--config", job(tmp_path, JOB), "--max-drop", "1", "--measure")
    assert result.exit_code == 0, result.output
    assert call["target"].name == "arm"
    assert (call["max_drop"], call["measure"]) == (1.0, True)


def test_what_was_given_is_kept_and_gives_the_same_again(call: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "kept.yaml"
    assert optimize("--config", job(tmp_path, JOB), "--threads", "2", "--save-config", kept).exit_code == 0
    first = {k: v for k, v in call.items() if k not in ("model", "example")}
    assert yaml.safe_load(kept.read_text()) == {
        "model": "configured_models:net", "target": "x86", "max-drop": 0.5, "input-shape": ["1,3,8,8"], "measure": False,
        "samples": 32, "threads": 2,
    }  # fmt: skip
    call.clear()
    assert optimize("--config", kept).exit_code == 0
    assert {k: v for k, v in call.items() if k not in ("model", "example")} == first


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max-dorp: 1", "there is no option 'max-dorp'; did you mean 'max-drop'?"),
        ("config: other.yaml", "'config' is about one call of a command; give it there, as --config"),
        ("log_file: run.log", "'log_file' is about one call of a command; give it there, as --log-file"),
        ("- target", "must hold options by name"),
        ("", "is empty; it must hold options by name"),
        ("target: [", "cannot be read as YAML"),
        ("target: {name: arm}", "target must be text, a number, true or false, or a list of them"),
        ("input-shape: {a: [1, 2]}", "input-shape must be text, a number, true or false, or a list of them"),
        ("input-shape: [[1, x]]", "input-shape must be text, a number, true or false, or a list of them"),
        ("calibration: !!python/object/apply:os.system ['touch ran']", "cannot be read as YAML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    text: str, complaint: str, call: dict[str, Any], tmp_path: Path
) -> None:
    result = optimize("configured_models:net", "--config", job(tmp_path, text))
    assert result.exit_code == 1
    assert complaint in result.output
    assert not call
    assert not (tmp_path / "ran").exists()


def test_values_are_checked_like_those_of_the_command_line(call: dict[str, Any], tmp_path: Path) -> None:
    result = optimize("configured_models:net", "--config", job(tmp_path, "max-drop: much"))
    assert result.exit_code == 2
    assert "'--max-drop'" in result.output
    assert optimize("configured_models:net", "--config", tmp_path / "none.yaml").exit_code == 1


# ---- Targets of one's own, random numbers, silence -----------------------------------------------------------------


def test_a_target_may_be_an_object(call: dict[str, Any]) -> None:
    assert optimize("configured_models:net", "--target", "configured_models:MINE").exit_code == 0
    assert call["target"].name == "mine"
    wrong = optimize("configured_models:net", "--target", "configured_models:net")
    assert wrong.exit_code == 1
    assert "configured_models:net is a function, not a Target" in wrong.output
    assert "did you mean 'MINE'" in optimize("configured_models:net", "--target", "configured_models:MIN").output


def test_the_same_seed_gives_the_same_weights(call: dict[str, Any]) -> None:
    weights = []
    for seed in (3, 3, 4):
        assert optimize("configured_models:net", "--seed", seed).exit_code == 0
        weights.append(call["model"][0].weight.detach().clone())
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_quiet_prints_nothing(call: dict[str, Any], tmp_path: Path) -> None:
    result = optimize("configured_models:net", "--quiet", "--report", tmp_path / "report.json")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "report.json").is_file()


def test_a_missing_file_of_class_labels_is_called_missing() -> None:
    with pytest.raises(InputError, match=r"there is no file names\.txt for --class-labels"):
        arguments.labels("names.txt")

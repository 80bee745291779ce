"""`graphopt completion`: scripts for shells, and what the program answers them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphopt import passes, targets
from graphopt.cli import completion, main

SHELLS = [shell.value for shell in completion.Shell]


def answers(shell: str, *words: str) -> list[str]:
    """What the program tells a script that asks what the last word may become."""
    environment = {**os.environ, completion.VARIABLE: f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "graphopt"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_that_asks_the_program(shell: str) -> None:
    script = CliRunner().invoke(main.app, ["completion", shell])
    assert script.exit_code == 0, script.output
    assert f"{completion.VARIABLE}=complete_{shell}" in script.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_targets_complete(shell: str) -> None:
    found = " ".join(answers(shell, "graphopt", "optimize", "m:n", "--target", "tvm-cortex-a7"))
    assert "tvm-cortex-a72" in found
    assert "tvm-cortex-a76-fp16" in found
    assert "tvm-cortex-a53" not in found


def test_commands_options_and_arguments_complete() -> None:
    assert answers("bash", "graphopt", "op")[0] == "optimize"
    assert answers("bash", "graphopt", "optimize", "--calib")[0] == "--calibration"
    assert answers("bash", "graphopt", "targets", "hexa")[0] == "hexagon"
    assert answers("bash", "graphopt", "passes", "fold-b")[0] == "fold-batch-norm"


def test_passes_complete_one_by_one() -> None:
    assert completion.passes("") == passes.names()
    assert completion.passes("simplify,fold-b") == ["simplify,fold-batch-norm"]
    assert completion.passes("simplify, prune{keep_ratio=0.5}, fold-b") == [
        "simplify, prune{keep_ratio=0.5}, fold-batch-norm"
    ]
    assert completion.passes("none-such") == []
    assert completion.targets("") == targets.names()


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_its_script(tmp_path: Path) -> None:
    program = tmp_path / "graphopt"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m graphopt "$@"\n')
    program.chmod(0o755)
    script = CliRunner().invoke(main.app, ["completion", "bash"]).stdout
    asked = "COMP_WORDS=(graphopt targets nvi); COMP_CWORD=2; _graphopt_completion graphopt; echo ${COMPREPLY[@]}"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script + asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nvidia"]


def test_an_unknown_shell_is_a_mistake_in_the_command() -> None:
    assert CliRunner().invoke(main.app, ["completion", "tcsh"]).exit_code == 2

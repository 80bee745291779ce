"""`graphopt completion`, and what completes: targets, passes, and all that the commands say of themselves.

Typer writes the scripts. What they call must answer within a moment, so nothing here imports PyTorch.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]

VARIABLE = "_GRAPHOPT_COMPLETE"  # set by the scripts when they ask what completes


class Shell(str, Enum):
    """Those there are scripts for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Whose script.")]) -> None:
    """Print what lets a shell complete commands, options, targets and passes.

    bash: graphopt completion bash >> ~/.bashrc

    zsh:  graphopt completion zsh > "${fpath[1]}/_graphopt"

    fish: graphopt completion fish > ~/.config/fish/completions/graphopt.fish
    """
    print(get_completion_script(prog_name="graphopt", complete_var=VARIABLE, shell=shell.value))


def prepare() -> None:
    """Let the program answer a script that asks."""
    if VARIABLE in os.environ:
        completion_init()


def targets(incomplete: str) -> list[str]:
    """Names of targets that begin so."""
    from graphopt.targets import names

    return [name for name in names() if name.startswith(incomplete)]


def passes(incomplete: str) -> list[str]:
    """Names of passes, behind those that a text has already: `simplify,fold`."""
    from graphopt.passes import names

    place = incomplete.rfind(",") + 1
    begun = incomplete[place:].lstrip()
    before = incomplete[: len(incomplete) - len(begun)]
    return [before + name for name in names() if name.startswith(begun)]

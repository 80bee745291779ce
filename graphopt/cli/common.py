"""The options that every command has: `--debug`, `-v` and `--log-file`, before the command's name or behind it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import reporting
from graphopt.cli.logs import logging_to

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Say what is done; twice (-vv): every change."
    ),
]
LogFile = Annotated[Path | None, typer.Option(help="File that all of this is added to, with times.")]
NAMES = ("debug", "verbose", "log_file")


@dataclass
class _Given:
    """What stands before the command's name."""

    debug: bool = False
    verbose: int = 0
    log_file: Path | None = None


_given = _Given()


def before(debug: bool, verbose: int, log_file: Path | None) -> None:
    """Remember what stands before the command's name."""
    global _given
    _given = _Given(debug, verbose, log_file)


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options as its last ones."""

    @functools.wraps(command)
    def called(*, debug: bool, verbose: int, log_file: Path | None, **options: Any) -> None:
        file = log_file or _given.log_file
        verbose += _given.verbose
        reporting.debug = debug or _given.debug
        reporting.quiet_libraries = not verbose and file is None
        with reporting.reporting(), logging_to(verbose, file):
            command(**options)

    added = {"debug": (Debug, False), "verbose": (Verbose, 0), "log_file": (LogFile, None)}
    signature = inspect.signature(command, eval_str=True)
    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *signature.parameters.values(),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
                for name, (kind, default) in added.items()
            ),
        ]
    )
    called.__annotations__ = {name: parameter.annotation for name, parameter in called.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return called

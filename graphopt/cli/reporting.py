"""Errors as one line on standard error and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from graphopt.utils import files
from graphopt.utils.errors import GraphoptError

debug = False  # set by `--debug`
quiet_libraries = True  # unset by `-v` and `--log-file`


@contextmanager
def reporting() -> Iterator[None]:
    """Turn errors into one line and an exit code."""
    if not debug:
        quieten()
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _say("interrupted; no result was written")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            raise
        _say(_text(error))
        raise typer.Exit(1) from error


def _text(error: Exception) -> str:
    """An error in one line: ours as it is, a full or read-only disk by name, any other as unexpected."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, GraphoptError):
        return f"error: {text}"
    if isinstance(error, OSError) and (reason := files.hindrance(error)):
        place = error.filename or f"in the temporary folder {tempfile.gettempdir()} ($TMPDIR names another)"
        return f"error: cannot write {place}: {reason}"
    return f"unexpected {type(error).__name__}{_place(error)}: {text} (--debug shows where)"


def _place(error: BaseException) -> str:
    """Where in a file of the user's own the error came up, if it did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(Path.cwd())]
    return f" at {Path(own[-1].filename).relative_to(Path.cwd())}:{own[-1].lineno}" if own else ""


def _say(text: str) -> None:
    print(f"graphopt: {text}", file=sys.stderr)


def quieten() -> None:
    """Warnings of libraries about themselves are nothing the user of a command can act on."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING if quiet_libraries else logging.NOTSET)

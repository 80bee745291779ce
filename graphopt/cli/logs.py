"""What the library logs while a command runs: on standard error with `-v`, in a file with `--log-file`.

-v                  stages, passes, what stays in float         level INFO
-vv                 every change, every fitted region           level DEBUG
--log-file FILE     all of it with times, whatever is shown
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt.utils import files
from graphopt.utils.errors import InputError

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _StandardError(logging.Handler):
    """Looks standard error up for every line: bars of progress stand in for it while they are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class _File(logging.FileHandler):
    """A file that lines are added to. Where it takes no more, that is said once, and the command goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        self.gives_up(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what is still in its buffer
            self.gives_up(error)

    def gives_up(self, error: BaseException | None) -> None:
        if self.level <= logging.CRITICAL:
            print(f"graphopt: --log-file {self.baseFilename} takes no more: {_reason(error)}", file=sys.stderr)
        self.setLevel(logging.CRITICAL + 1)


@contextmanager
def logging_to(verbose: int, file: Path | None) -> Iterator[None]:
    """Show what the loggers of graphopt say, and keep it in a file, within the context.

    Raises:
        InputError: the file cannot be written.
    """
    logger, handlers = logging.getLogger("graphopt"), []
    if verbose:
        handlers.append(_handler(_StandardError(), LEVELS[min(verbose, 2)], "%(levelname)s %(name)s: %(message)s"))
    if file is not None:
        handlers.append(_handler(_file(file), logging.DEBUG, "%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if not handlers:
        yield
        return
    level = logger.level
    logger.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _handler(handler: logging.Handler, level: int, form: str) -> logging.Handler:
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(form))
    return handler


def _file(path: Path) -> logging.Handler:
    try:
        return _File(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --log-file {path}: {_reason(error)}") from error


def _reason(error: BaseException | None) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return files.hindrance(error) or f"{error.strerror}; choose another place"

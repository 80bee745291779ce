"""What libraries print straight to the process's standard output, or its standard error: nobody sees it, or we read it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any

OUT, ERR = 1, 2  # file descriptors


@contextmanager
def silent(*descriptors: int) -> Iterator[None]:
    """Nothing is written to these file descriptors meanwhile, to standard output where none is named.

    Some releases of HiGHS write to it for debugging, ExecuTorch's runtime logs to standard error.
    """
    with ExitStack() as stack:
        nothing = stack.enter_context(open(os.devnull, "wb"))
        for descriptor in descriptors or (OUT,):
            stack.enter_context(_redirected(descriptor, nothing))
        yield


@contextmanager
def heard(descriptor: int) -> Iterator[list[str]]:
    """The lines that are written to a file descriptor meanwhile, in a list that is filled at the end; nobody else sees them."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        try:
            with _redirected(descriptor, file):
                yield lines
        finally:
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


@contextmanager
def _redirected(descriptor: int, file: IO[Any]) -> Iterator[None]:
    """What is written to a file descriptor, and to Python's stream of it, which may be another file."""
    stream, redirect = (sys.stdout, redirect_stdout) if descriptor == OUT else (sys.stderr, redirect_stderr)
    if stream is not None:
        stream.flush()
    try:
        kept = os.dup(descriptor)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(file.fileno(), descriptor)
        with open(os.dup(file.fileno()), "w", errors="replace") as text, redirect(text):
            yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)

"""Silence for libraries that print straight to the process's standard output, or its standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

OUT, ERR = 1, 2  # file descriptors


@contextmanager
def silent(*descriptors: int) -> Iterator[None]:
    """Nothing is written to these file descriptors meanwhile, to standard output where none is named.

    Some releases of HiGHS write to it for debugging, ExecuTorch's runtime logs to standard error.
    """
    with ExitStack() as stack:
        for descriptor in descriptors or (OUT,):
            stack.enter_context(_silent(descriptor))
        yield


@contextmanager
def _silent(descriptor: int) -> Iterator[None]:
    stream = sys.stdout if descriptor == OUT else sys.stderr
    if stream is not None:
        stream.flush()
    try:
        kept = os.dup(descriptor)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)

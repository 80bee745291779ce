"""The errors graphopt raises, by whose mistake it is.

The caller's mistakes are `ValueError`s with a subclass where code may want to react to one; a pass that breaks its own
contract raises `PassError`, which is ours to mend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class GraphoptError(Exception):
    """Base of every error graphopt raises on purpose; the command line prints these in one line."""


class CaptureError(GraphoptError, ValueError):
    """The model cannot be captured into a graph: where in its source, why, and what to change."""


class InputError(GraphoptError, ValueError):
    """An argument, a tensor or a file handed in by the caller does not fit: what, where, and what to do."""


class ArtifactError(GraphoptError, ValueError):
    """A saved artifact is damaged, was altered, or comes from a newer graphopt."""


class NonFiniteError(GraphoptError, ValueError):
    """NaN or infinity turned up in a weight or an activation; the message names the first node that produced one."""


class ExecutionError(GraphoptError, RuntimeError):
    """An operator of a graph failed on what it was given; names the operator and where it is."""


class PassError(GraphoptError, RuntimeError):
    """A pass broke its contract (invalid graph, changed outputs although exact); the message says how to reproduce."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'arm'? ` where something known is near, for a message to go on behind it; else empty."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""


def alternatives(name: str, known: Iterable[str], kind: str) -> str:
    """What may have been meant, for the end of a message: `did you mean 'arm'? Known targets: arm, x86`, where nothing is near
    `known targets: arm, x86`.
    """
    listed = list(known)
    hint = suggestion(name, listed)
    return f"{hint}{'Known' if hint else 'known'} {kind}: {', '.join(listed)}"


def first_line(error: BaseException, otherwise: str = "") -> str:
    """Of an error's message; where it has none, this, or the error's type."""
    return next(_lines(error), otherwise or type(error).__name__)


def last_line(error: BaseException) -> str:
    """Of an error's message, where a library puts a traceback of its own in front; its type where there is none."""
    return [type(error).__name__, *_lines(error)][-1]


def _lines(error: BaseException) -> Iterator[str]:
    return (line.strip() for line in str(error).splitlines() if line.strip())

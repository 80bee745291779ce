"""Progress of long work: bars where a person watches them, nothing at all in a pipe or a log file.

    for batch in track(batches, "calibrating"): ...

    with progress("reconstructing", total=20) as advance:
        advance()

Bars may be nested. Who draws them: `graphopt.utils.terminal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from graphopt.utils import terminal

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, counted on a bar; `total` where the iterable does not know its length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total) as advance:
        for item in iterable:
            yield item
            advance()


def progress(description: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]:
    """A bar to move by hand: calls of what the context gives count one each."""
    if (installed := terminal.current()) is not None:
        return installed.bar(description, total)
    return nullcontext(lambda: None)

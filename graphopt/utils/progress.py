"""Progress bars: on standard error where a person watches it, nothing at all in a pipe or a log file.

    for batch in track(batches, "calibrating"): ...

    with progress("reconstructing", total=20) as advance:
        advance()

Bars may be nested: all of them share one display.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")

_active: list[Progress] = []  # the display that is showing, if any


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, counted on a bar; `total` where the iterable does not know its length."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress(description, total) as advance:
        for item in iterable:
            yield item
            advance()


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar to move by hand: calls of the yielded function count one each."""
    display = _active[-1] if _active else None
    started = display is None
    if display is None:
        display = _display()
        _active.append(display)
        display.start()
    task = display.add_task(description, total=total)
    try:
        yield lambda: display.advance(task)
    finally:
        display.remove_task(task)
        if started:
            _active.remove(display)
            display.stop()


def _display() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

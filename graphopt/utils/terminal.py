"""What is drawn while a person watches: bars of progress, and reports in colour.

The library itself draws nothing: it shows plain text, and no bars at all. Who has a terminal installs it once:

    terminal.install(make)      make() is called when something is to be shown for the first time
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from graphopt.utils.tables import Block, plain


class Terminal(Protocol):
    """A place where a person watches."""

    def show(self, blocks: Iterable[Block], width: int) -> None:
        """Show blocks: in colour on a terminal, as plain text of `width` characters in a pipe."""

    def bar(self, description: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """A bar of progress, which each call of what the context gives moves on by one; bars nest."""


_make: Callable[[], Terminal] | None = None
_installed: Terminal | None = None


def install(make: Callable[[], Terminal] | None) -> None:
    """Let `make()` be the terminal from now on; None: there is none."""
    global _make, _installed
    _make, _installed = make, None


def current() -> Terminal | None:
    """The terminal that was installed, if any."""
    global _installed
    if _installed is None and _make is not None:
        _installed = _make()
    return _installed


def show(blocks: Iterable[Block], width: int) -> None:
    """Show blocks on the terminal; where there is none, print them as plain text."""
    if (terminal := current()) is not None:
        terminal.show(blocks, width)
    else:
        print(plain(blocks, width))

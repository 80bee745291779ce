"""The terminal, drawn with rich: bars on standard error, results in colour on standard output.

Neither is drawn where no person watches: a pipe gets plain text and no bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Drawn
from rich.text import Text

from graphopt.utils.tables import Block, Facts, Line, Table, plain

STYLES = {"plain": "", "title": "bold", "warning": "yellow"}


class RichTerminal:
    """See the head of this file. Nested bars share one display."""

    def __init__(self) -> None:
        self._active: Progress | None = None

    def show(self, blocks: Iterable[Block], width: int) -> None:
        console = Console()
        if console.is_terminal:
            for block in blocks:
                console.print(_drawn(block))
        else:
            print(plain(blocks, width))

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[[], None]]:
        started = self._active is None
        if self._active is None:
            self._active = _display()
            self._active.start()
        display = self._active
        task = display.add_task(description, total=total)
        try:
            yield lambda: display.advance(task)
        finally:
            display.remove_task(task)
            if started:
                self._active = None
                display.stop()


def _display() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _drawn(block: Block) -> RenderableType:
    if isinstance(block, Line):
        return Text(block.text, style=STYLES[block.kind])
    if isinstance(block, Facts):
        grid = Drawn.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column()
        for name, text in block.facts:
            grid.add_row(name, Text(text))
        return grid
    return _table(block)


def _table(block: Table) -> Drawn:
    table = Drawn(box=SIMPLE, pad_edge=False)
    for column in block.columns:
        if column.number:
            table.add_column(column.name, justify="right", no_wrap=True)
        else:
            table.add_column(column.name, overflow="fold")
    for row in block.rows:
        table.add_row(*(Text(cell) for cell in row))  # names are text, not rich's markup
    return table

"""What is shown to people, as data: lines, tables and lists of facts, and how they look as plain text.

A terminal may draw the same data in colour (`graphopt.utils.terminal`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

NARROWEST = 12  # characters that a column keeps when others need the room


@dataclass(frozen=True)
class Line:
    """A line of text."""

    text: str
    kind: Literal["plain", "title", "warning"] = "plain"


@dataclass(frozen=True)
class Column:
    """One column of a table. Text aligns left and may wrap, numbers align right and never do."""

    name: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; a cell may hold several lines."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """Names with what there is to say of them."""

    facts: Sequence[tuple[str, str]]


Block: TypeAlias = Line | Table | Facts


def numbers(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, number=True) for name in names]


def plain(blocks: Iterable[Block], width: int) -> str:
    """The blocks as text of at most `width` characters a line (numbers are never cut)."""
    return "\n".join(line.rstrip() for block in blocks for line in _lines(block, width))


def _lines(block: Block, width: int) -> list[str]:
    if isinstance(block, Line):
        return _wrapped(block.text, width)
    if isinstance(block, Table):
        return _table(block, width)
    names = max((len(name) for name, _ in block.facts), default=0)
    lines = []
    for name, text in block.facts:
        first, *rest = _wrapped(text, max(width - names - 2, NARROWEST))
        lines += [f"{name:<{names}}  {first}", *(" " * (names + 2) + more for more in rest)]
    return lines


def _table(table: Table, width: int) -> list[str]:
    header = [column.name for column in table.columns]
    widths = _widths(table, width)

    def shown(cells: Sequence[str]) -> list[str]:
        wrapped = [_wrapped(cell, limit) for cell, limit in zip(cells, widths, strict=True)]
        height = max(map(len, wrapped))
        filled = [[*lines, *[""] * (height - len(lines))] for lines in wrapped]
        return [" " + "   ".join(map(_aligned, row, table.columns, widths)) for row in zip(*filled, strict=True)]

    rule = " " + "─" * (sum(widths) + 3 * (len(widths) - 1))
    body = [line for row in table.rows for line in shown(row)]
    return ["", *shown(header), rule, *body, ""]


def _aligned(cell: str, column: Column, width: int) -> str:
    return f"{cell:>{width}}" if column.number else f"{cell:<{width}}"


def _widths(table: Table, width: int) -> list[int]:
    """The natural widths; where they are too much, columns of text give way, the widest first."""
    cells = [[column.name, *(row[i] for row in table.rows)] for i, column in enumerate(table.columns)]
    widths = [max((len(line) for cell in column for line in cell.split("\n")), default=0) for column in cells]
    excess = sum(widths) + 3 * (len(widths) - 1) + 1 - width
    texts = [i for i, column in enumerate(table.columns) if not column.number]
    while excess > 0 and texts and max(widths[i] for i in texts) > NARROWEST:
        widths[max(texts, key=lambda i: widths[i])] -= 1
        excess -= 1
    return widths


def _wrapped(text: str, width: int) -> list[str]:
    lines = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, width, break_on_hyphens=False, replace_whitespace=False) or [""]
    return lines

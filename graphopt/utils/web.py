"""What is shown to people as HTML: a fragment for notebooks, or one self-contained page that fetches nothing.

Everything is text: what a model or a file calls itself is never taken for markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from graphopt.utils.tables import Block, Facts, Line, Table

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.graphopt { --soft: light-dark(#f3f4f6, #22262b); --line: light-dark(#d9dce1, #3a4048);
  --warn: light-dark(#fff3d6, #4a3a12); --dim: light-dark(#5c6570, #a3adb8); }
.graphopt table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
.graphopt td { font-variant-numeric: tabular-nums; vertical-align: top; }
.graphopt th, .graphopt td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; }
.graphopt th { color: var(--dim); font-weight: 600; } .graphopt .n { text-align: right; white-space: nowrap; }
.graphopt tbody tr:hover { background: var(--soft); } .graphopt td { white-space: pre-line; }
.graphopt .w { background: var(--warn); padding: .5rem .75rem; border-radius: .4rem; }
.graphopt .t { font-weight: 600; font-size: 1.1rem; } .graphopt p { margin: .4rem 0; }
.graphopt summary { cursor: pointer; margin: .6rem 0; font-weight: 600; }
"""

Section = tuple[str, Sequence[Block]]


def page(title: str, blocks: Iterable[Block], sections: Iterable[Section] = ()) -> str:
    """A whole document: warnings first, then everything else, then sections that open on demand."""
    blocks = list(blocks)
    warnings = [block for block in blocks if _warns(block)]
    rest = [block for block in blocks if not _warns(block)]
    parts = "".join(
        f"<details><summary>{escape(name)}</summary>{_all(content)}</details>" for name, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n"
        f'<body><main class="graphopt"><h1>{escape(title)}</h1>{_all([*warnings, *rest])}{parts}</main></body></html>\n'
    )


def fragment(blocks: Iterable[Block]) -> str:
    """For a cell of a notebook."""
    return f'<style>{STYLE[STYLE.index(".graphopt") :]}</style><div class="graphopt">{_all(blocks)}</div>'


def _warns(block: Block) -> bool:
    return isinstance(block, Line) and block.kind == "warning"


def _all(blocks: Iterable[Block]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    if isinstance(block, Line):
        kind = {"plain": "", "title": ' class="t"', "warning": ' class="w" role="alert"'}[block.kind]
        return f"<p{kind}>{escape(block.text)}</p>" if block.text.strip() else ""
    if isinstance(block, Facts):
        return _rows("", [f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in block.facts])
    return _table(block)


def _table(table: Table) -> str:
    kinds = [' class="n"' if column.number else "" for column in table.columns]
    head = "".join(f"<th{kind}>{escape(c.name)}</th>" for kind, c in zip(kinds, table.columns, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    ]
    return _rows(f"<thead><tr>{head}</tr></thead>", rows)


def _rows(head: str, rows: Sequence[str]) -> str:
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"

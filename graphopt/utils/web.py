"""What is shown to people as HTML: a fragment for notebooks, or one self-contained page that fetches nothing.

Everything is text: what a model or a file calls itself is never taken for markup. Parts of a page are markup that was made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from graphopt.utils.tables import Block, Facts, Line, Table

PAGE_STYLE = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; background: light-dark(#f4f5f7, #14171b);
  color: light-dark(#1b2026, #e4e8ed); }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
.sub { color: var(--dim); margin: 0 0 1rem; } .lead { font-size: 1.1rem; margin: 1rem 0; }
.panel { background: light-dark(#ffffff, #1c2025); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.1rem; margin: 1rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: light-dark(#ffffff, #1c2025); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere; }
.card b.none { font-size: 1rem; font-weight: 400; color: var(--dim); }
.card span { color: var(--dim); font-size: .85rem; display: block; white-space: pre-line; }
figure { margin: 0; } figcaption { color: var(--dim); font-size: .88rem; margin-top: .4rem; }
figure > svg { max-width: 100%; height: auto; }
.drawing { overflow: auto; max-height: 75vh; border: 1px solid var(--line); border-radius: .5rem; text-align: center;
  background: light-dark(#fbfcfd, #171a1f); overscroll-behavior: contain; }
.drawing svg { max-width: none; vertical-align: top; }
.tools { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin: 0 0 .6rem; font-size: .9rem; }
.tools button { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line);
  border-radius: .4rem; padding: .15rem .65rem; cursor: pointer; }
.tools button[aria-pressed=true] { background: light-dark(#2f5f96, #6ea3dc); color: light-dark(#fff, #10151b);
  border-color: transparent; }
.tools i { display: inline-block; width: .9em; height: .9em; border-radius: .2em; vertical-align: -.1em; margin: 0 .3em 0 .6em;
  border: 1px solid var(--line); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: 1.25rem 2.25rem; }
.grid figcaption b { display: block; overflow-wrap: anywhere; color: light-dark(#1b2026, #e4e8ed); }
details.panel > summary { margin: 0; } details.panel[open] > summary { margin-bottom: .6rem; }
th.sorts { cursor: pointer; } th.sorts:hover { text-decoration: underline; }
@media (max-width: 40rem) { main { padding: 1rem .75rem 3rem; } h1 { font-size: 1.35rem; } .panel { padding: .8rem .75rem; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; } .card b { font-size: 1.1rem; } }
@media print { .drawing { max-height: none; overflow: visible; } .tools button { display: none; } }
"""
STYLE = """
.graphopt { --soft: light-dark(#eef0f3, #262b32); --line: light-dark(#dde1e6, #343a43);
  --warn: light-dark(#fff3d6, #463a17); --dim: light-dark(#5c6570, #a3adb8); --bar: light-dark(#cfe0f2, #2c4a6b); }
.graphopt .scroll { overflow-x: auto; }
.graphopt table { border-collapse: collapse; margin: .5rem 0; }
.graphopt td { font-variant-numeric: tabular-nums; vertical-align: top; }
.graphopt td:first-child { min-width: 8.5rem; }
.graphopt th, .graphopt td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; }
.graphopt th { color: var(--dim); font-weight: 600; } .graphopt .n { text-align: right; white-space: nowrap; }
.graphopt tbody tr:hover { background: var(--soft); } .graphopt td { white-space: pre-line; }
.graphopt td.bar { background: linear-gradient(to left, var(--bar) var(--share), transparent var(--share)) no-repeat; }
.graphopt .w { background: var(--warn); padding: .5rem .75rem; border-radius: .4rem; }
.graphopt .t { font-weight: 600; font-size: 1.1rem; } .graphopt p { margin: .4rem 0; }
.graphopt summary { cursor: pointer; margin: .6rem 0; font-weight: 600; }
"""


class Card(NamedTuple):
    """A figure that is seen at a glance: its name, the figure, and what there is to say of it; no figure where it is missing."""

    name: str
    figure: str
    says: str = ""
    missing: bool = False


def page(title: str, parts: Iterable[str], *, script: str = "") -> str:
    """A whole document.

    Args:
        parts: markup, as the functions of this file make it.
        script: our own, for what moves; the page is whole without it.
    """
    behind = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{PAGE_STYLE}{STYLE}</style></head>\n"
        f'<body><main class="graphopt"><h1>{escape(title)}</h1>\n{_joined(parts)}\n</main>{behind}</body></html>\n'
    )


def fragment(content: Iterable[Block]) -> str:
    """For a cell of a notebook."""
    return f'<style>{STYLE}</style><div class="graphopt">{blocks(content)}</div>'


# ---- Parts of a page ------------------------------------------------------------------------------------------------


def blocks(content: Iterable[Block]) -> str:
    """Blocks, warnings first."""
    content = list(content)
    return _joined(_block(block) for block in sorted(content, key=lambda block: not _warns(block)))


def paragraph(words: str, kind: str = "") -> str:
    """Text in one of the styles `sub`, `lead`, or plain."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def panel(name: str, parts: Iterable[str]) -> str:
    """A titled part."""
    return f'<section class="panel"><h2>{escape(name)}</h2>{_joined(parts)}</section>'


def folded(name: str, parts: Iterable[str]) -> str:
    """A part that opens on demand."""
    return f'<details class="panel"><summary>{escape(name)}</summary>{_joined(parts)}</details>'


def cards(content: Iterable[Card]) -> str:
    """Figures side by side."""
    return f'<div class="cards">{"".join(map(_card, content))}</div>'


def figure(picture: str, caption: str = "", name: str = "") -> str:
    """A picture as SVG markup, with a name in bold and words below."""
    bold = f"<b>{escape(name)}</b>" if name else ""
    below = f"<figcaption>{bold}{escape(caption)}</figcaption>" if bold or caption else ""
    return f"<figure>{picture}{below}</figure>"


def grid(parts: Iterable[str]) -> str:
    """Small parts side by side, as many in a row as there is room for."""
    return f'<div class="grid">{"".join(parts)}</div>'


def table(content: Table, bars: Sequence[Sequence[float | None]] = (), sorts: bool = False) -> str:
    """A table; `bars`: for each row and column the share, 0 to 1, that a bar behind the figure fills."""
    kinds = ["n" if column.number else "" for column in content.columns]
    order = ' class="%s"' if not sorts else ' class="%s sorts"'
    head = "".join(f"<th{order % kind}>{escape(c.name)}</th>" for kind, c in zip(kinds, content.columns, strict=True))
    rows = []
    for number, row in enumerate(content.rows):
        shares = bars[number] if bars else [None] * len(row)
        cells = (_cell(*each) for each in zip(row, kinds, shares, strict=True))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _rows(f"<thead><tr>{head}</tr></thead>", rows)


def _cell(words: str, kind: str, share: float | None) -> str:
    if share is None:
        return f'<td class="{kind}">{escape(words)}</td>' if kind else f"<td>{escape(words)}</td>"
    return f'<td class="{kind} bar" style="--share:{100 * share:.1f}%">{escape(words)}</td>'


def _card(card: Card) -> str:
    kind = ' class="none"' if card.missing else ""
    says = f"<span>{escape(card.says)}</span>" if card.says else ""
    return f'<div class="card"><span>{escape(card.name)}</span><b{kind}>{escape(card.figure)}</b>{says}</div>'


def _warns(block: Block) -> bool:
    return isinstance(block, Line) and block.kind == "warning"


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _block(block: Block) -> str:
    if isinstance(block, Line):
        kind = {"plain": "", "title": ' class="t"', "warning": ' class="w" role="alert"'}[block.kind]
        return f"<p{kind}>{escape(block.text)}</p>" if block.text.strip() else ""
    if isinstance(block, Facts):
        return _rows("", [f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in block.facts])
    return table(block)


def _rows(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'

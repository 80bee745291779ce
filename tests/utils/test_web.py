"""What is shown to people as HTML: all of it, as text, and nothing from elsewhere."""

from __future__ import annotations

import html
import re

import pytest
from pages import BAD, fetches, parsed

from graphopt.utils import web
from graphopt.utils.charts import Point, scatter
from graphopt.utils.tables import Column, Facts, Line, Table
from graphopt.utils.web import Card, fragment

BLOCKS = [
    Line("title", "title"), Line(BAD), Line("beware", "warning"), Facts([("name " + BAD, "two\nlines")]),
    Table([Column("layer"), Column("ms", number=True)], [[BAD, "1.5"]]),
]  # fmt: skip
TABLE = Table([Column(BAD), Column("ms", number=True)], [[BAD, "1.5"]])


def page(title: str) -> str:
    """A page with every kind of part."""
    parts = [
        web.blocks(BLOCKS), web.paragraph(BAD, "lead"), web.panel(BAD, [web.table(TABLE, [[0.5, None]], sorts=True)]),
        web.folded(BAD, [web.blocks(BLOCKS)]), web.cards([Card(BAD, BAD, BAD), Card("time", "none", "", True)]),
        web.grid([web.figure(scatter([Point(BAD, 1, 2, BAD)], BAD, BAD), BAD, BAD)]),
    ]  # fmt: skip
    return web.page(title, parts)


@pytest.mark.parametrize("text", [page(BAD), fragment(BLOCKS)])
def test_names_are_text_and_never_markup(text: str) -> None:
    assert "<script" not in text
    assert parsed(text).count(BAD) >= 3
    assert html.escape(BAD) in text


def test_a_page_fetches_nothing_and_begins_with_warnings() -> None:
    text = page("report")
    assert fetches(text) == []
    assert text.index("beware") < text.index("two")
    assert "color-scheme: light dark" in text
    assert 'name="viewport"' in text


@pytest.mark.parametrize("text", [page("report"), fragment(BLOCKS)])
def test_every_colour_that_is_used_is_said(text: str) -> None:
    used, said = (set(re.findall(pattern, text)) for pattern in (r"var\((--\w+)\)", r"(--\w+):"))
    assert used
    assert used - {"--share"} <= said, "a cell says its own share"

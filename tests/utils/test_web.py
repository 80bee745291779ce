"""What is shown to people as HTML: all of it, as text, and nothing from elsewhere."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rewriting import randomised
from torch import nn

import graphopt
from graphopt.utils.tables import Column, Facts, Line, Table
from graphopt.utils.web import fragment, page

BAD = "<script>alert('x')</script> & \"quoted\""
BLOCKS = [
    Line("title", "title"), Line(BAD), Line("beware", "warning"), Facts([("name " + BAD, "two\nlines")]),
    Table([Column("layer"), Column("ms", number=True)], [[BAD, "1.5"]]),
]  # fmt: skip


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> str:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return "".join(parser.text)


@pytest.mark.parametrize("text", [page(BAD, BLOCKS, [("more " + BAD, BLOCKS)]), fragment(BLOCKS)])
def test_names_are_text_and_never_markup(text: str) -> None:
    assert "<script" not in text
    assert parsed(text).count(BAD) >= 3
    assert html.escape(BAD) in text


def test_a_page_fetches_nothing_and_begins_with_warnings() -> None:
    text = page("report", BLOCKS)
    assert not re.search(r"(src|href|url\(|@import)", text)
    assert text.index("beware") < text.index("two")
    assert "color-scheme: light dark" in text
    assert 'name="viewport"' in text


def test_a_report_is_a_page_with_all_of_its_changes(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))).eval()
    x = torch.randn(4, 3, 8, 8)
    report = graphopt.optimize(model, x, target="x86", calibration=x, measure=False).report
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    shown = parsed(text)
    for step in report.steps:
        assert step.name in shown
        assert all(what in shown for _, what in step.changes)
    assert "Seconds by stage" in shown
    assert report._repr_html_().startswith("<style>")
    report.save(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text().startswith("{")


@pytest.mark.parametrize("text", [page("report", BLOCKS), fragment(BLOCKS)])
def test_every_colour_that_is_used_is_said(text: str) -> None:
    used, said = (set(re.findall(pattern, text)) for pattern in (r"var\((--\w+)\)", r"(--\w+):"))
    assert used
    assert used <= said

"""Pages of HTML, read as strictly as a careful reader would."""

from __future__ import annotations

import re
from html.parser import HTMLParser

BAD = "<script>alert('x')</script> & \"quoted\""  # a name that is markup where nobody escapes it


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


def fetches(text: str) -> list[str]:
    """What a page would ask others for; the name of SVG's namespace is only a name."""
    return re.findall(r"src=|href|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)

"""Pictures as SVG text: elements with everything escaped, that fetch nothing and need no script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def element(name: str, content: str | Iterable[str] = "", **attributes: object) -> str:
    """`element("rect", x=1, stroke_width=2)`; content is markup already. Attributes that are None are left out."""
    inside = content if isinstance(content, str) else "".join(content)
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{inside}</{name}>" if inside else f"<{name}{said}/>"


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """A line of text, which is never markup."""
    return element("text", escape(words), x=x, y=y, **attributes)


def title(words: str) -> str:
    """What is shown beside the pointer, and read aloud."""
    return element("title", escape(words))


def picture(width: float, height: float, content: str | Iterable[str], label: str, **attributes: object) -> str:
    """A whole picture; `label` says in words what it shows."""
    return element(
        "svg",
        [title(label), *([content] if isinstance(content, str) else content)],
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        width=width,
        height=height,
        role="img",
        font_family="system-ui, sans-serif",
        **attributes,
    )


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def mixed(stops: Iterable[str], share: float) -> str:
    """The colour at a share, 0 to 1, of the way through colours such as `#e3f1e6`."""
    colours = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops]
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    pair = zip(colours[first], colours[first + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - first)):02x}" for a, b in pair)

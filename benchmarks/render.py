"""Tables of figures that `--json` saved, in markdown, and the pages of docs/results/ that hold them.

    python benchmarks/render.py                 # writes the tables of benchmarks/results/*.json into docs/results/*.md
    python benchmarks/render.py speed.json ...  # prints the tables of these files

A page says where a table stands, and this writes what is between the two marks:

    <!-- table speed: Speed: images of 224x224; columns: model, batch, ms -->    the table of this title in speed.json
    <!-- source speed -->                                                        its command, and what it was measured on
    <!-- end -->

Without `columns` a table has all that its rows have. A title or column that is not in the file is an error, which names those
that are.
"""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "benchmarks/results"
PAGES = ROOT / "docs/results"
MARKED = re.compile(r"<!-- (table|source) ([^\n]+?) -->\n.*?<!-- end -->", re.DOTALL)
Row = dict[str, Any]


# ---- Tables ---------------------------------------------------------------------------------------------------------


def table(rows: list[Row], columns: list[str] | None = None) -> str:
    """Rows as a markdown table; a missing figure is an empty cell."""
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    texts = [formatted([row.get(column) for row in rows]) for column in columns]
    lines = [columns, ["---"] * len(columns), *map(list, zip(*texts, strict=True))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def formatted(values: list[Any]) -> list[str]:
    """A column: numbers below 1 with three digits, below 100 with two decimals at most, others as integers.

    No number has more decimals than one of its column needs, so that 18.4 in a column of such does not become 18.40.
    """
    numbers = [value for value in values if isinstance(value, float)]
    needed = max((decimals(round(number, most(number))) for number in numbers), default=0)
    return [cell(value, needed) for value in values]


def cell(value: Any, needed: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.{min(most(value), needed)}f}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def most(number: float) -> int:
    """The decimals a number may have."""
    return 0 if abs(number) >= 100 else 2


def decimals(number: float) -> int:
    exponent = Decimal(repr(number)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


# ---- Pages ----------------------------------------------------------------------------------------------------------


def page(text: str) -> str:
    """The page with everything between marks written again from the figures."""
    return MARKED.sub(lambda mark: f"<!-- {mark[1]} {mark[2]} -->\n{written(mark[1], mark[2])}\n<!-- end -->", text)


def written(kind: str, what: str) -> str:
    if kind == "source":
        return "`{command}`, on {machine}.\n".format(**read(what))
    name, _, rest = what.partition(": ")
    title, _, columns = rest.partition("; columns: ")
    tables: dict[str, list[Row]] = read(name)["tables"]
    if title not in tables:
        raise SystemExit(f"{name}.json has no table {title!r}; it has: {', '.join(map(repr, tables))}")
    chosen = columns.split(", ") if columns else None
    known = dict.fromkeys(key for row in tables[title] for key in row)
    if missing := [column for column in chosen or () if column not in known]:
        raise SystemExit(f"{name}.json, {title!r}, has no columns {missing}; it has: {', '.join(map(repr, known))}")
    return "\n" + table(tables[title], chosen) + "\n"


def read(name: str) -> dict[str, Any]:
    path = FIGURES / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there are no figures {path.relative_to(ROOT)}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main(paths: list[str]) -> None:
    for path in paths:
        for title, rows in json.loads(Path(path).read_text())["tables"].items():
            print(f"\n{title}\n\n{table(rows)}")
    for file in sorted(PAGES.glob("*.md")) if not paths else ():
        before = file.read_text()
        if (after := page(before)) != before:
            file.write_text(after)
            print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Rows of benchmarks that train: a line of a file for each run, which is not run again, and what they say together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIGURES = ("CPU min", "epochs", "before", "last", "test")  # of which a summary has the means


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> None:
    """Make a row and append it, unless the file has one with this key."""
    if any(all(row.get(name) == value for name, value in key.items()) for row in read(path)):
        return
    row = {**key, **make()}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print({name: value for name, value in row.items() if name != "judged"}, flush=True)


def summary(path: Path, by: tuple[str, ...], figures: tuple[str, ...] = FIGURES) -> list[dict[str, Any]]:
    """Means over seeds, and the lowest and highest test figure, for each group of rows that are alike in `by`."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in read(path):
        groups.setdefault(tuple(row.get(name) for name in by), []).append(row)
    return [
        {
            **dict(zip(by, key, strict=True)),
            **{name: _mean(rows, name) for name in figures if _mean(rows, name) is not None},
            "lowest": min(row["test"] for row in rows),
            "highest": max(row["test"] for row in rows),
            "seeds": len(rows),
        }
        for key, rows in groups.items()
    ]


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    found = [row[name] for row in rows if name in row]
    return statistics.fmean(found) if found else None

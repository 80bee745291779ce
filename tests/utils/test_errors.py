"""Errors that users meet: in one place, under one base, documented; and none beside them."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

import pytest
from test_layering import ROOT, files

import graphopt
from graphopt.utils import errors

PAGE = (ROOT / "docs/reference/errors.md").read_text()
PUBLIC = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
ROWS = {
    name: (kind, when)
    for name, kind, when in re.findall(r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE)
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_error_is_public_and_documented(name: str) -> None:
    assert getattr(graphopt, name) is PUBLIC[name]
    assert name in graphopt.__all__
    assert issubclass(PUBLIC[name], errors.GraphoptError)
    assert name in PAGE.split(":::")[1]


def test_the_table_says_what_each_is_and_when_it_is_raised() -> None:
    assert set(ROWS) == set(PUBLIC) - {"GraphoptError"}
    for name, (kind, when) in ROWS.items():
        assert issubclass(PUBLIC[name], getattr(builtins, kind)), name
        assert len(when) > 40, name


def raised(path: Path) -> list[str]:
    """The names of exceptions that a file raises."""
    nodes = (node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise))
    calls = (node.func if isinstance(node, ast.Call) else node for node in nodes)
    return [call.id for call in calls if isinstance(call, ast.Name)]


@pytest.mark.parametrize(
    "folder", ["passes", "graphopt/formats", "graphopt/cli", "graphopt/data", "graphopt/evaluation"]
)
def test_mistakes_of_the_caller_are_errors_of_graphopt(folder: str) -> None:
    bare = {"ValueError", "RuntimeError", "TypeError", "KeyError", "Exception"}
    assert [f"{path}: {name}" for path in files(folder) for name in raised(path) if name in bare] == []


def test_a_message_of_many_lines_has_a_first_and_a_last() -> None:
    error = ValueError("\n  first\n\nlast  \n")
    assert (errors.first_line(error), errors.last_line(error)) == ("first", "last")
    assert errors.first_line(ValueError()) == errors.last_line(ValueError()) == "ValueError"

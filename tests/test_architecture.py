"""The map of the house is true: every room says what each of its files is for, and the table has every room."""

import ast
import re
from pathlib import Path

import pytest
from test_layering import FLOORS

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs/internals/architecture.md").read_text()
ROOMS = sorted(
    p.parent for p in (ROOT / "graphopt").glob("*/__init__.py") if p.parent.name not in ("passes", "backends")
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_each_of_its_files_is_for(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    listed = set(re.findall(r"^\s*(\w+(?:\.py|/))\s+\S", text, re.MULTILINE))
    files = {p.name for p in room.glob("*.py") if p.name != "__init__.py"}
    folders = {f"{p.parent.name}/" for p in room.glob("*/__init__.py")}
    assert listed == files | folders


def test_the_table_has_every_room_on_its_floor() -> None:
    rows = {name: int(floor) for floor, name in re.findall(r"^\| (\d+) \| `(\w+)/` \|", MAP, re.MULTILINE)}
    assert rows == FLOORS


def test_the_files_it_names_exist() -> None:
    missing = [
        name
        for name in re.findall(r"(?:graphopt|passes|backends|tests)/[\w/]+\.py", MAP)
        if not (ROOT / name).is_file()
    ]
    assert missing == []

"""The house has floors: a room imports from lower floors alone, a pass no other room of passes, a backend no other backend."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {  # of the rooms in graphopt/; rooms of one floor do not know each other
    "utils": 1,
    "coding": 2, "formats": 2,
    "targets": 3,
    "ir": 4,
    "frontend": 5, "execution": 5, "networks": 5, "retrieval": 5, "spaces": 5,
    "analysis": 6, "data": 6, "policies": 6, "searching": 6,
    "fitting": 7, "passmanager": 7,
    "lowering": 8, "training": 8,
    "artifacts": 9, "supernets": 9,
    "cascades": 10, "evaluation": 10,
    "compiler": 11,
    "demo": 12,
    "cli": 13,
}  # fmt: skip
PASSES_AND_BACKENDS_KNOWN_BY = {"compiler", "demo", "cli"}
LAZY = {
    ("graphopt/ir/graph.py", "graphopt.frontend.capture"),
    ("graphopt/ir/graph.py", "graphopt.frontend.capture.capture"),
}  # `Graph.capture` imports it when it is called
# What passes and backends may know.
HIGHEST_FOR_PASSES, HIGHEST_FOR_BACKENDS = FLOORS["fitting"], FLOORS["evaluation"]


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or inside functions, relative ones made absolute."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("passes", "backends"):
        parts.insert(0, "graphopt")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(folder: str) -> list[Path]:
    return [
        p for p in sorted((ROOT / folder).rglob("*.py")) if p.relative_to(ROOT).parts[1] not in ("passes", "backends")
    ]


def rooms_of(path: Path) -> Iterator[tuple[str, str]]:
    """The rooms of graphopt/ that a file imports from, each with the module imported."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "graphopt" and len(parts) > 1 and (str(path.relative_to(ROOT)), name) not in LAZY:
            yield parts[1], name


def test_every_room_has_a_floor() -> None:
    rooms = {p.parent.name for p in (ROOT / "graphopt").glob("*/__init__.py")} - {"passes", "backends"}
    assert rooms == set(FLOORS)


def test_a_room_knows_only_lower_floors() -> None:
    wrong = []
    for path in files("graphopt"):
        own = path.relative_to(ROOT / "graphopt").parts[0]
        if own not in FLOORS:
            continue  # graphopt/__init__.py, which gathers the public names, and __main__.py
        for room, name in rooms_of(path):
            upward = room in FLOORS and room != own and FLOORS[room] >= FLOORS[own]
            outside = room in ("passes", "backends") and own not in PASSES_AND_BACKENDS_KNOWN_BY
            if upward or outside:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize(("folder", "highest"), [("passes", HIGHEST_FOR_PASSES), ("backends", HIGHEST_FOR_BACKENDS)])
def test_passes_and_backends_know_only_floors_below_them(folder: str, highest: int) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for room, name in rooms_of(path)
        if FLOORS.get(room, 0) > highest
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["passes", "backends"])
def test_passes_and_backends_do_not_know_each_other(folder: str) -> None:
    """A room of passes (`passes/quantization/`), or a backend, is one: its files may share helpers."""
    wrong = []
    for path in files(folder):
        own = ".".join(module_name(path).split(".")[:3])
        if path == ROOT / folder / "__init__.py":
            continue  # it may gather them
        for name in imports(path):
            if name.startswith(("graphopt.passes.", "graphopt.backends.")) and not f"{name}.".startswith(f"{own}."):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("folder", ["graphopt", "passes", "backends", "tests"])
def test_passes_and_backends_are_imported_under_graphopt(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name in imports(path)
        if name.split(".")[0] in ("passes", "backends")
    ]
    assert wrong == []


def test_the_check_sees_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "passes").mkdir()
    path = tmp_path / "passes" / "a.py"
    path.write_text("import x.y\nfrom . import b\nfrom .c import d\ndef f():\n    from graphopt.passes import e\n")
    assert set(imports(path)) == {
        "x.y", "graphopt.passes", "graphopt.passes.b", "graphopt.passes.c", "graphopt.passes.c.d", "graphopt.passes.e",
    }  # fmt: skip


def test_every_package_is_listed_for_the_wheel() -> None:
    """A package missing from the list is missing from the wheel, while an editable install still finds it."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        module_name(p)
        for folder in ("graphopt", "passes", "backends")
        for p in files(folder)
        if p.name == "__init__.py"
    }
    assert sorted(listed) == sorted(found)
    for folder in ("graphopt", "passes", "backends"):
        for path in files(folder):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"

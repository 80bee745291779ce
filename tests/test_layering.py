"""The house has three kinds of rooms and one direction: graphopt/ <- passes/ and backends/ <- the few at the top."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The only core files that may know passes and backends.
TOP = {"__init__.py", "api.py", "recipes.py", "stopwatch.py", "ladder.py", "cli.py", "demo"}


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


def test_the_core_knows_no_pass_and_no_backend() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("graphopt")
        if path.relative_to(ROOT / "graphopt").parts[0] not in TOP
        for name in imports(path)
        if name.startswith(("graphopt.passes", "graphopt.backends"))
    ]
    assert wrong == []


def test_a_pass_knows_no_other_pass_and_no_backend() -> None:
    """A package of passes (`passes/quantization/`) is one: its files may share helpers."""
    wrong = []
    for path in files("passes"):
        own = ".".join(module_name(path).split(".")[:3])
        for name in imports(path):
            other_pass = name.startswith("graphopt.passes.") and not (name + ".").startswith(own + ".")
            if path == ROOT / "passes" / "__init__.py":
                other_pass = False  # it may gather them
            if other_pass or name.startswith("graphopt.backends"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_a_backend_knows_no_pass_and_no_other_backend() -> None:
    wrong = []
    for path in files("backends"):
        own = ".".join(module_name(path).split(".")[:3])
        for name in imports(path):
            other = name.startswith("graphopt.backends.") and not (name + ".").startswith(own + ".")
            if (other and path != ROOT / "backends" / "__init__.py") or name.startswith("graphopt.passes"):
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

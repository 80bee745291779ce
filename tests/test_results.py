"""The tables of docs/results/ are those that the figures in benchmarks/results/ give."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/results").glob("*.md"))
FIGURES = sorted((ROOT / "benchmarks/results").glob("*.json"))
MARK = re.compile(r"<!-- table (\w+): (.+?)(?:; columns: .*?)? -->")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks/render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render = load()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_the_tables_of_its_figures(path: Path) -> None:
    text = path.read_text()
    assert render.page(text) == text, "its figures changed; python benchmarks/render.py writes the tables again"


@pytest.mark.parametrize("path", [p for p in PAGES if p.stem != "index"], ids=lambda path: path.stem)
def test_a_page_has_no_table_of_its_own(path: Path) -> None:
    assert "\n|" not in render.MARKED.sub("", path.read_text())


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_figures_are_shown_and_say_where_they_come_from(path: Path) -> None:
    figures = json.loads(path.read_text())
    shown = {found[2] for page in PAGES for found in MARK.finditer(page.read_text()) if found[1] == path.stem}
    assert shown == set(figures["tables"])
    assert figures["command"].startswith("python benchmarks/")
    assert (ROOT / figures["command"].split()[1]).exists()
    assert figures["machine"]


def test_the_index_leads_to_every_page() -> None:
    index, nav = (ROOT / "docs/results/index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for path in PAGES:
        assert f"results/{path.name}" in nav
        assert path.stem == "index" or f"]({path.name})" in index


def test_a_table_has_the_digits_that_its_numbers_have() -> None:
    rows = [{"way": "a", "top-1": 91.734, "s": 18.4, "n": 10_000}, {"way": "b", "top-1": 94.0, "s": 7.0, "n": 7}]
    assert render.table(rows).splitlines()[2:] == ["| a | 91.73 | 18.4 | 10,000 |", "| b | 94.00 | 7.0 | 7 |"]
    rows = [{"a": 1, "b": None}, {"b": 123.4}, {"b": 0.12345}]
    assert render.table(rows, ["b"]).splitlines()[2:] == ["|  |", "| 123 |", "| 0.123 |"]


def test_a_mark_takes_some_columns_and_replaces_what_was_there() -> None:
    page = "x\n<!-- table blocks: Blocks, one image, one thread; columns: ours ms, block -->\nold\n<!-- end -->\ny"
    lines = render.page(page).splitlines()
    assert lines[0] == "x"
    assert lines[3] == "| ours ms | block |"
    assert lines[-2:] == ["<!-- end -->", "y"]
    assert "old" not in lines


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("table blocks: Block", "blocks.json has no table 'Block'; it has: 'Blocks, one image"),
        ("table blocks: Blocks, one image, one thread; columns: seconds", r"no columns \['seconds'\]; it has: 'block'"),
        ("source nothing", "there are no figures benchmarks/results/nothing.json"),
    ],
)
def test_a_mark_that_names_nothing_is_refused(mark: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        render.page(f"<!-- {mark} -->\n<!-- end -->")

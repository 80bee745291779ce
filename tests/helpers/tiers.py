"""A pytest plugin: which tests a run takes, in three tiers.

    pytest                  quick: one case of every parametrized test, without what is marked `thorough`
    pytest --tier rest      what quick left out; of tests marked `many`, whose cases are alike, two cases more
    pytest --tier all       everything; also what a run takes that names files or tests, or selects with -k or -m

Tests marked `slow` are in none of them; `-m slow` takes those. A whole quick run fails that leaves a module of ours unimported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
TIERS = ("quick", "rest", "all")
EVERYDAY = "not slow"  # -m in pyproject.toml
MODULES = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier", choices=TIERS, help="quick: a case of every test; rest: what quick leaves out; all: both"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Decided once: processes that xdist starts are given the answer with the other options."""
    config.stash[MODULES] = set()
    option = config.option
    if option.tier is None:
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        option.tier = "quick" if whole and not option.keyword and option.markexpr == EVERYDAY else "all"


@pytest.hookimpl(trylast=True)  # behind -m, so that no case stands for its test that -m leaves out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.tier == "all":
        return
    quick = set(representatives(items))
    taken = quick if config.option.tier == "quick" else set(spread([item for item in items if item not in quick]))
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = [item for item in items if item in taken]


def representatives(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """The first case of every test that is not marked thorough."""
    seen: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test not in seen and item.get_closest_marker("thorough") is None:
            seen.add(test)
            yield item


def spread(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """All of these, but of a test with many cases that are alike one from the middle and the last."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in cases.values():
        few = len(found) > 2 and found[0].get_closest_marker("many") is not None
        yield from (found[len(found) // 2], found[-1]) if few else found


# ---- Every module is imported by the quick tier ---------------------------------------------------------------------


def modules() -> set[str]:
    """Ours, by name; not what only starts the command line."""
    paths = (p.relative_to(ROOT) for top in ("graphopt", "passes", "backends") for p in (ROOT / top).rglob("*.py"))
    named = {".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in paths}
    ours = {name if name.startswith("graphopt") else f"graphopt.{name}" for name in named}
    return {name for name in ours if not name.endswith("__main__")}


def unimported(seen: set[str]) -> list[str]:
    return sorted(modules() - seen)


@pytest.hookimpl(optionalhook=True)  # xdist has it
def pytest_testnodedown(node: Any) -> None:
    """A process of xdist has ended: what it imported."""
    node.config.stash[MODULES].update(getattr(node, "workeroutput", {}).get("modules", ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    here = {name for name in sys.modules if name.partition(".")[0] == "graphopt"}
    if hasattr(config, "workeroutput"):
        config.workeroutput["modules"] = sorted(here)
        return
    config.stash[MODULES] |= here
    complete = config.option.tier == "quick" and config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if complete and exitstatus == 0 and not config.option.collectonly and unimported(config.stash[MODULES]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    missing = unimported(config.stash[MODULES])
    if (
        terminalreporter._session.exitstatus == pytest.ExitCode.TESTS_FAILED
        and config.option.tier == "quick"
        and missing
    ):
        terminalreporter.write_line(f"the quick tier imports not: {', '.join(missing)}", red=True)

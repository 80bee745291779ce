"""`graphopt search`: what the command line hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run

import graphopt
from graphopt.compiler.search.recipe import Recipe
from graphopt.compiler.search.results import Point, SearchResults


@pytest.fixture
def search_call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    point = Point({}, Recipe(), "found/point_00", 0.0, {"macs": 1.0}, sqnr_db=30.0)

    def search(model: Any, example: Any, **how: Any) -> SearchResults:
        asked.update(how, model=model)
        return SearchResults("Net", [point])

    monkeypatch.setattr(graphopt, "search", search, raising=False)
    return asked


def test_each_budget_is_a_network_and_commas_join_amounts(search_call: dict[str, Any]) -> None:
    result = run(
        "search", "cli_models:net", "--budget", "latency=0.5", "--budget", "latency=0.3,bytes=2000", "--out", "found",
        "--evaluate", "cli_models:accuracy", "--target", "x86", "--seconds", "60", "--report", "front.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert search_call["budgets"] == [{"latency": 0.5}, {"latency": 0.3, "bytes": 2000.0}]
    assert (search_call["folder"], search_call["seconds"], search_call["seed"]) == (Path("found"), 60.0, 0)
    assert search_call["target"].name == "x86"
    assert search_call["evaluate"](None) == 0.5
    assert not search_call["model"].training
    assert "the best: found/point_00" in result.stdout
    assert "<svg" in Path("front.html").read_text()


def test_mistakes_are_told(search_call: dict[str, Any]) -> None:
    result = run("search", "cli_models:net", "--budget", "fast", "--out", "found")
    assert result.exit_code == 1
    assert "--budget 'fast' is not of the form" in result.stderr
    assert run("search", "cli_models:net", "--out", "found").exit_code == 2
    assert not search_call

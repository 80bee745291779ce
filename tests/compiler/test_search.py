"""Networks for several budgets from one look."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import nn

import graphopt
from graphopt.compiler.budget import planner
from graphopt.compiler.search import run
from graphopt.compiler.search.recipe import Recipe
from graphopt.compiler.search.results import Point, SearchResults
from graphopt.targets import find, host
from graphopt.utils.errors import InputError

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [[batch] for batch in X.split(16)]
BUDGETS = [{"macs": 0.7}, {"macs": 0.4}]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))).eval()


def agreement(model: Any) -> float:
    """The share of inputs of one class, as the network itself sees them."""
    with torch.no_grad():
        wanted = network()(X).argmax(1)
    return float((torch.cat([model(x) for x in X.split(1)]).argmax(1) == wanted).float().mean())


def find_networks(**how: Any) -> SearchResults:
    how = {"target": host("onnxruntime"), "calibration": DATA, "budgets": BUDGETS, **how}
    return graphopt.search(network(), X[:1], **how)


@pytest.fixture(autouse=True)
def _own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(planner, "NETWORKS", 6)


def test_every_budget_gets_an_artifact_and_what_all_need_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planners: list[Any] = []
    monkeypatch.setattr(
        run, "Planner", lambda *args, **how: planners.append(planner.Planner(*args, **how)) or planners[0]
    )
    results = find_networks(evaluate=agreement, folder=tmp_path / "search")
    assert len(planners) == 1
    assert [point.budget for point in results.points] == [{}, *BUDGETS]
    macs = [point.costs["macs"] for point in results.points]
    for point, budget in zip(results.points[1:], BUDGETS, strict=True):
        assert point.costs["macs"] <= budget["macs"] * macs[0]
        assert point.artifact()(X[:1]).shape == (1, 10)
        assert point.score == agreement(point.artifact())
    assert results.original_score == 1.0
    assert results.best.score == max(point.score or 0.0 for point in results.points)
    page = results.page()
    assert "macs 0.4" in page
    assert "<svg" in page
    results.save(tmp_path / "front.html")
    assert json.loads(json.dumps(results.to_dict()))["points"][1]["budget"] == BUDGETS[0]


@pytest.mark.thorough
def test_an_interrupted_search_goes_on_with_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def interrupted(candidate: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(candidate)
        return make(candidate)

    make = run.make
    monkeypatch.setattr(run, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_networks(folder=tmp_path)
    assert len(made) == 2
    monkeypatch.setattr(run, "make", lambda candidate: made.append(candidate) or make(candidate))
    monkeypatch.setattr(run, "Planner", lambda *args, **how: pytest.fail("planned again"))
    results = find_networks(folder=tmp_path)
    assert len(made) == 3
    assert len(results.points) == 3
    again = find_networks(folder=tmp_path)
    assert len(made) == 3
    assert again.to_dict()["points"] == results.to_dict()["points"]


@pytest.mark.thorough
def test_a_folder_of_another_search_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    find_networks(folder=tmp_path, budgets=BUDGETS[:1])
    with pytest.raises(InputError, match="holds a search of another model"):
        graphopt.search(network()[:4].eval(), X[:1], target="x86", calibration=DATA, budgets=BUDGETS, folder=tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        find_networks(folder=tmp_path)


@pytest.mark.thorough
def test_times_of_whole_networks_are_taken_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_networks(folder=tmp_path, budgets=[{"latency": 0.99}])
    state = json.loads((tmp_path / "search.json").read_text())
    assert len(state["times"]) >= 6
    assert set(first.points[1].costs) == {"ms", "bytes", "macs"}
    monkeypatch.setattr(planner, "lowered", lambda *args, **how: pytest.fail("measured again"))
    with pytest.raises(InputError, match="out of reach"):
        find_networks(folder=tmp_path, budgets=[{"latency": 1e-4}])


@pytest.mark.thorough
def test_an_executor_makes_the_networks(tmp_path: Path) -> None:
    class Counting(ThreadPoolExecutor):
        submitted = 0

        def submit(self, *args: Any, **how: Any) -> Future[Any]:
            Counting.submitted += 1
            return super().submit(*args, **how)

    with Counting(1) as executor:
        results = find_networks(folder=tmp_path, executor=executor)
    assert Counting.submitted == 3
    assert [point.budget for point in results.points] == [{}, *BUDGETS]


@pytest.mark.thorough
def test_another_process_makes_the_same_networks(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        results = find_networks(folder=tmp_path / "there", executor=executor, budgets=BUDGETS[:1])
    here = find_networks(folder=tmp_path / "here", budgets=BUDGETS[:1])
    for one, other in zip(results.points, here.points, strict=True):
        assert one.recipe == other.recipe
        assert torch.equal(one.artifact()(X[:1]), other.artifact()(X[:1]))


@pytest.mark.thorough
def test_budgets_out_of_reach_are_told_and_others_made() -> None:
    results = find_networks(budgets=[{"macs": 1e-6}, {"macs": 0.7}])
    assert [point.budget for point in results.points] == [{}, {"macs": 0.7}]
    ((budget, reason),) = results.refused
    assert budget == {"macs": 1e-6}
    assert "at the least" in reason
    assert reason in str(results).replace("\n", " ")
    with pytest.raises(InputError, match="out of reach"):
        find_networks(budgets=[{"macs": 1e-6}])


@pytest.mark.thorough
def test_an_evaluate_that_fails_for_one_network_leaves_the_others() -> None:
    calls = []

    def failing(model: Any) -> float:
        calls.append(model)
        if len(calls) == 4:  # the original twice, the network as it is, the first budget
            raise RuntimeError("no board")
        return 0.5

    results = find_networks(evaluate=failing)
    assert [point.score for point in results.points] == [0.5, None, 0.5]
    assert "no board" in results.points[1].error
    assert results.points[1] not in results.front("macs")
    calls[:] = calls[:3]
    with pytest.raises(InputError, match="no board"):
        find_networks(evaluate=failing)  # the original


def test_a_search_without_time_gives_the_network_as_it_is() -> None:
    results = find_networks(seconds=0.0)
    assert [point.name for point in results.points] == ["as it is"]
    assert results.best is results.points[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"budgets": []}, "give one budget or more"),
        ({"budgets": [{"macs": 0.5}, {"mac": 0.5}]}, "did you mean 'macs'"),
        ({"budgets": [{"latency": 0.5}], "target": "hexagon"}, "nothing can be timed for it here"),
    ],
)
def test_bad_input_is_told_before_any_work(how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_networks(**how)


# ---- Results and recipes --------------------------------------------------------------------------------------------


def point(ms: float, score: float | None, **how: Any) -> Point:
    return Point({"ms": ms}, Recipe(), "", 0.0, {"ms": ms, "macs": 10 / ms}, score, **how)


def test_the_front_is_what_no_other_betters_and_noise_counts_as_equal() -> None:
    points = [point(3, 0.9), point(2, 0.8), point(2.5, 0.7), point(1, 0.5), point(4, 0.901), point(1.5, None)]
    assert SearchResults("net", points).front("ms") == [points[3], points[1], points[0], points[4]]
    noisy = SearchResults("net", points, noise=0.01)
    assert noisy.front() == [points[3], points[1], points[0]]
    assert noisy.best is points[0]
    assert SearchResults("net", points).best is points[4]
    with pytest.raises(InputError, match="no cost 'bytes' was measured"):
        noisy.front("bytes")


def test_without_scores_the_answers_are_compared_with_the_original() -> None:
    points = [point(2, None, sqnr_db=30.0), point(1, None, sqnr_db=10.0), point(3, None, sqnr_db=20.0)]
    results = SearchResults("net", points)
    assert results.front("ms") == [points[1], points[0]]
    assert results.best is points[0]


@pytest.mark.thorough
def test_a_recipe_is_plain_data_that_makes_the_same_network() -> None:
    target = find("x86")
    budget = {"macs": 0.5, "bytes": 0.1}
    results = find_networks(target=target, budgets=[budget])
    recipe = Recipe(**json.loads(json.dumps(results.points[1].recipe.to_dict())))
    assert recipe == results.points[1].recipe
    assert recipe.passes.startswith(("prune{", "svd{", "remove-blocks{"))
    assert any(bits in (3, 4, 6) for bits in recipe.bits.values())
    made = graphopt.optimize(network(), X[:1], target=target, calibration=DATA, passes=recipe, measure=False)
    assert torch.equal(made.artifact(X[:1]), results.points[1].artifact()(X[:1]))

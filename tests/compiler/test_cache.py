"""Results that are kept: the same call is answered from a folder, another one is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

import graphopt
from graphopt.compiler import optimize as module
from graphopt.data import synthesize
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

TAKEN = "was taken from the cache"
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()


def optimized(folder: Path, model: nn.Module | None = None, **changed: Any) -> Any:
    asked = {"target": "arm", "calibration": [X], "measure": False, "cache": folder} | changed
    return graphopt.optimize(model or network(), X, **asked)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every result that is not taken from the cache."""
    count: list[int] = []
    real: Callable[..., Any] = module._make
    monkeypatch.setattr(module, "_make", lambda *given: (count.append(1), real(*given))[1])
    return count


def test_the_same_call_is_answered_from_the_folder(tmp_path: Path, made: list[int]) -> None:
    first, again = optimized(tmp_path), optimized(tmp_path)
    assert len(made) == 1
    assert torch.equal(first.artifact(X), again.artifact(X))
    assert torch.equal(first.graph(X), again.graph(X))
    assert again.report.sqnr_db == first.report.sqnr_db
    assert [TAKEN in note for note in (again.report.notes[-1], first.report.notes[-1])] == [True, False]
    assert again.artifact.save(tmp_path / "out").is_dir()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changed",
    [
        {"model": network(1)},
        {"calibration": [X + 0.1]},
        {"target": "x86"},
        {"estimator": "minmax"},
        {"formats": {"3": None}},
        {"passes": "fold-batch-norm, quantize"},
        {"class_labels": ["a", "b", "c", "d"]},
        {"dynamic_batch": False},
        {"preprocessing": graphopt.Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_call_is_not(changed: dict[str, Any], tmp_path: Path, made: list[int]) -> None:
    optimized(tmp_path)
    optimized(tmp_path, **changed)
    optimized(tmp_path, **changed)
    assert len(made) == 2


@pytest.mark.thorough
def test_accuracy_is_measured_anew(tmp_path: Path, made: list[int]) -> None:
    def accuracy(answer: Callable[[Tensor], Tensor]) -> float:
        return float(answer(X).mean())

    def another(answer: Callable[[Tensor], Tensor]) -> float:
        return 2 * float(answer(X).mean())

    first, again = optimized(tmp_path, evaluate=accuracy), optimized(tmp_path, evaluate=another)
    assert len(made) == 1
    assert again.report.accuracy_before == pytest.approx(2 * first.report.accuracy_before)
    assert again.report.accuracy_after == pytest.approx(2 * first.report.accuracy_after)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"passes": []}, "passes are objects"),
        ({"max_drop": 0.5, "evaluate": lambda answer: 1.0}, "max_drop lets evaluate decide"),
        ({"calibration": iter([X])}, "gone through only once"),
        ({"dump": "steps"}, "more than a result"),
    ],
)
def test_what_no_text_tells_is_made_each_time(
    changed: dict[str, Any], why: str, tmp_path: Path, made: list[int]
) -> None:
    if "dump" in changed:
        changed = {"dump": tmp_path / "steps"}
    result = optimized(tmp_path / "cache", **changed)
    assert any(f"the cache was not asked: {why}" in note or why in note for note in result.report.notes)
    assert len(made) == 1
    assert not list((tmp_path / "cache").iterdir())


def test_inputs_are_made_up_only_where_nothing_is_kept(
    tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled: list[int] = []
    real = synthesize.distil
    monkeypatch.setattr(synthesize, "distil", lambda *given: (distilled.append(1), real(*given))[1])
    first, again = optimized(tmp_path, calibration=None), optimized(tmp_path, calibration=None)
    assert (len(made), len(distilled)) == (1, 1)
    assert torch.equal(first.artifact(X), again.artifact(X))
    alone = graphopt.optimize(network(), X, target="arm", measure=False)
    assert torch.equal(first.artifact(X), alone.artifact(X)), "they are those that are made up without a cache"
    noise = [*synthesize.synthetic(Graph.capture(network(), X))]
    optimized(tmp_path, calibration=noise)
    assert len(made) == 3, "the same numbers as data of the caller's are another call"


@pytest.mark.thorough
def test_a_damaged_result_is_made_again(tmp_path: Path, made: list[int]) -> None:
    optimized(tmp_path)
    (graph,) = tmp_path.glob("*.graph")
    graph.write_bytes(b"no graph")
    optimized(tmp_path)
    assert len(made) == 2
    optimized(tmp_path)
    assert len(made) == 2


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, made: list[int]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        optimized(tmp_path / "file" / "cache")
    assert not made


@pytest.mark.thorough
def test_processes_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import torch, graphopt; from torch import nn; torch.manual_seed(0)\n"
        "m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(); x = torch.ones(2, 3, 8, 8)\n"
        f"r = graphopt.optimize(m, x, target='arm', calibration=[x], measure=False, cache={str(tmp_path)!r})\n"
        "print(float(r.artifact(x).sum()))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in runs}
    assert [process.returncode for process in runs] == [0, 0]
    assert len(answers) == 1
    assert len(list(tmp_path.glob("*.graph"))) == 1

"""Where an optimization spends its time: every stage, every pass, nothing twice."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.artifacts.report import Report
from graphopt.passes import Simplify
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError

X = torch.randn(4, 3, 8, 8)
MODEL = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
HERE = {"avx2": "x86-avx2", "x86_64": "x86", "aarch64": "arm"}  # the target that is timed on each machine
STAGES = ["capture", "shrink", "prepare", "quantize", "lower", "evaluate", "measure"]


def optimized(**options: Any) -> Any:
    return graphopt.optimize(MODEL, X, target=HERE[machine_here()], **{"calibration": [X], "measure": False, **options})


def test_every_stage_and_every_pass_is_in_the_report(tmp_path: Path) -> None:
    assert callable(graphopt.optimize)  # imported when it is first asked for
    begin = time.perf_counter()
    result = optimized(keep_macs=0.7, evaluate=lambda model: 0.5, measure=True)
    passed = time.perf_counter() - begin
    report = result.report
    stages = report.timings.stages
    assert [stage.name for stage in stages] == STAGES
    parts = [part for stage in stages if stage.name in ("shrink", "prepare", "quantize") for part in stage.parts]
    assert parts == [(step.name, step.seconds) for step in report.steps[:-1]]  # the last is what was lowered
    assert [name for name, _ in stages[0].parts] == ["runtime", "graph", "data", "accuracy"]
    assert [name for name, _ in stages[4].parts] == ["write", "accuracy"]
    assert [name for name, _ in stages[6].parts] == ["write the original", "latency"]
    assert all(stage.seconds >= sum(seconds for _, seconds in stage.parts) > -1 for stage in stages)
    assert 0.9 * passed <= report.timings.seconds <= passed
    report.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert Report.from_dict(data).timings == report.timings
    loaded = graphopt.load(result.artifact.save(tmp_path / "deployed")).report
    assert loaded is not None
    assert loaded.timings == report.timings


def test_passes_of_ones_own_are_a_stage() -> None:
    report = optimized(passes=[Simplify()]).report
    assert [(s.name, [name for name, _ in s.parts]) for s in report.timings.stages][1] == ("passes", ["Simplify"])
    assert "passes" not in [s.name for s in optimized(passes=[]).report.timings.stages]


@pytest.mark.thorough
def test_each_attempt_of_the_ladder_is_counted() -> None:
    scores = iter([1.0, 0.5, 0.6, 1.0])
    report = optimized(max_drop=0.1, evaluate=lambda model: next(scores)).report
    lower = next(stage for stage in report.timings.stages if stage.name == "lower")
    assert [name for name, _ in lower.parts] == [attempt.name for attempt in report.attempts]
    assert lower.seconds >= sum(attempt.seconds for attempt in report.attempts)


@pytest.mark.parametrize("timings", [{"stages": [{"name": "x", "more": 1}]}, {"steps": []}, []])
def test_timings_that_are_none_are_refused(timings: Any) -> None:
    data = {**Report("Net", "x86").to_dict(), "timings": timings}
    with pytest.raises(InputError, match=r"cannot hold"):
        Report.from_dict(data)

"""`optimize` from end to end, as a user calls it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blocks import conv, images, model_of
from optimizing import accuracy, quick, result
from rewriting import Model
from torch import nn

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Report
from graphopt.artifacts.report_text import slower
from graphopt.backends.onnxruntime import backend, lower
from graphopt.compiler import stages
from graphopt.compiler.optimize import optimize
from graphopt.evaluation.timing import clock
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import cost as measures
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.targets import find


@cache
def stand_in() -> Artifact:
    return lower(Graph.capture(nn.ReLU().eval(), images(2)), find("host"))


@pytest.fixture
def unlowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what happens before lowering, which takes a second: any artifact will do, but that of `result`."""
    artifact = stand_in()  # before `lower`, which makes it, is replaced
    monkeypatch.setattr(backend, "BACKEND", replace(backend.BACKEND, lower=lambda *args, **options: artifact))
    monkeypatch.setattr(stages, "judge", lambda *args: None)


@pytest.mark.thorough
def test_the_order_of_tests_does_not_matter_to_the_stand_in_for_lowering(request: pytest.FixtureRequest) -> None:
    report = result()[0].artifact.manifest.report
    stand_in.cache_clear()
    request.getfixturevalue("unlowered")
    assert quick(nn.Sequential(conv(3, 4), nn.ReLU()).eval()).artifact is stand_in()
    assert result()[0].artifact.manifest.report is report


# ---- What comes back ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_artifact_answers_like_the_model() -> None:
    (artifact, _, graph), *_ = result()
    x = images(16, seed=5)
    with torch.no_grad():
        assert sqnr(model_of("residual")(x), artifact(x)) > 15
        assert sqnr(graph(x), artifact(x)) > 25
    assert graph.calls(FAKE_QUANTIZE)


def test_the_report_holds_what_was_measured() -> None:
    (artifact, report, _), *_ = result()
    assert [s.name for s in report.steps] == [
        "Simplify",
        "FoldBatchNorm",
        "FoldInputNormalization",
        "DecomposeActivations",
        "Quantize",
        "CorrectBias",
        "(lowered)",
    ]
    assert report.target == "host"
    assert report.accuracy_before == 1.0
    assert report.accuracy_after == accuracy(artifact)
    assert report.agreement is not None
    assert 0.8 <= report.agreement <= 1.0
    assert report.integer_macs == 1.0
    assert report.float_operators == []
    assert report.size_after == sum(f.stat().st_size for f in artifact.folder.iterdir() if f.name != "manifest.json")
    assert report.latency is not None
    assert report.latency.before_ms > 0
    assert report.latency.threads == 1
    assert report.warnings == [w for w in [slower(report.latency, report.float_operators)] if w]  # by what was measured
    assert "not measured" not in str(report)


def test_weights_shrink_to_a_quarter() -> None:
    (_, report, _), *_ = result()
    assert report.original is not None
    lowered = report.steps[-1]
    assert lowered.parameters <= report.original.parameters
    assert lowered.weight_bytes < 0.5 * report.original.weight_bytes


def test_the_model_is_evaluated_before_and_after() -> None:
    assert result()[1] == 2


def test_the_callers_model_is_untouched() -> None:
    _, _, before, model = result()
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_saved_artifact_is_loaded_with_its_report(tmp_path: Path) -> None:
    (artifact, report, _), *_ = result()
    again = graphopt.load(artifact.save(tmp_path / "model"))
    assert torch.equal(again(images(4)), artifact(images(4)))
    assert again.report is not None
    assert str(again.report) == str(report)
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["model"] == "Model"


@pytest.mark.parametrize("speedup", [0.77, 1.3])
def test_a_result_that_is_slower_than_float_is_warned_of(speedup: float, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = SimpleNamespace(median=lambda name: 1.0, speedup=lambda before, after: speedup)
    monkeypatch.setattr(measures, "timings", lambda calls, **_: taken)
    report = Report("Net", "host", integer_macs=1.0)
    artifact, _, graph = result()[0]
    clock(report, artifact, artifact, graph.example, 1)
    assert [w.partition(";")[0] for w in report.warnings] == (
        ["the integer model is slower than float here: 0.77x"] if speedup < 1 else []
    )
    float_only = Report("Net", "host")
    clock(float_only, artifact, artifact, graph.example, 1)
    assert float_only.warnings == []


# ---- What goes in ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.usefixtures("unlowered")
def test_the_simulated_graph_is_deployed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[Graph] = []
    judged: list[Graph] = []

    def recorded(graph: Graph, *args: Any, **options: Any) -> Any:
        lowered.append(graph)
        return stand_in()

    monkeypatch.setattr(backend, "BACKEND", replace(backend.BACKEND, lower=recorded))
    monkeypatch.setattr(stages, "judge", lambda report, audit, candidate, *rest: judged.append(candidate.deployed))
    simulated = quick(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()).graph
    (integer,) = lowered  # the float original is lowered only where it is measured
    assert integer is judged[0]
    assert simulated.calls(FAKE_QUANTIZE)
    assert not integer.calls(FAKE_QUANTIZE)
    assert "dequantize" in str(integer)


@pytest.mark.usefixtures("unlowered")
def test_example_inputs_are_inferred_and_that_is_said() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    report = optimize(model, target="host", calibration=[torch.randn(8, 6)], measure=False).report
    assert any("input" in note for note in report.notes)


@pytest.mark.usefixtures("unlowered")
def test_without_calibration_the_report_warns() -> None:
    report = quick(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval(), calibration=None).report
    assert any("no calibration data was given" in w for w in report.warnings)


@pytest.mark.usefixtures("unlowered")
def test_a_graph_may_be_given_and_is_left_alone() -> None:
    graph = Graph.capture(nn.Sequential(conv(3, 4), nn.ReLU()).eval(), images(2))
    text = str(graph)
    assert quick(graph).graph.calls(FAKE_QUANTIZE)  # type: ignore[arg-type]
    assert str(graph) == text


@pytest.mark.thorough
def test_passes_may_be_chosen() -> None:
    model = model_of("residual")
    listed = quick(model, passes=[Simplify(), FoldBatchNorm()])
    assert [s.name for s in listed.report.steps][:2] == ["Simplify", "FoldBatchNorm"]
    assert listed.report.integer_macs == 0
    assert {f.site for f in listed.report.float_operators} >= {"second", "head"}
    with torch.no_grad():
        torch.testing.assert_close(listed.artifact(images(4)), model(images(4)), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unlowered")
def test_passes_may_be_made_from_target_and_data() -> None:
    seen: list[Any] = []

    def passes(target: Any, data: Any) -> list[Any]:
        seen.extend([target.name, len(list(data))])
        return [Simplify()]

    quick(nn.Sequential(conv(3, 4)).eval(), passes=passes)
    assert seen == ["host", 2]


@pytest.mark.thorough
def test_a_layer_kept_in_float_is_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2)).eval()
    report = quick(model, formats={"2": None}).report
    assert [f.site for f in report.float_operators] == ["2"]
    assert report.integer_macs is not None
    assert report.integer_macs < 1
    assert ("2", "stays float: excluded by name") in [tuple(c) for c in report.steps[-3].changes]


@pytest.mark.usefixtures("unlowered")
def test_a_dump_shows_every_step(tmp_path: Path) -> None:
    quick(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()).eval(), dump=tmp_path / "dump")
    assert sorted(f.name for f in (tmp_path / "dump").iterdir()) == [
        "00_Simplify.txt", "01_FoldBatchNorm.txt", "02_FoldInputNormalization.txt", "03_DecomposeActivations.txt",
        "04_Quantize.txt", "05_CorrectBias.txt", "capture.txt",
    ]  # fmt: skip


@pytest.mark.usefixtures("unlowered")
def test_another_architectures_latency_is_not_measured() -> None:
    import platform

    other = "x86" if platform.machine() in ("aarch64", "arm64") else "arm"
    report = quick(nn.Sequential(conv(3, 4)).eval(), target=other, measure=True).report
    assert report.latency is None
    assert "this machine is" in report.missing["latency"]


@pytest.mark.thorough
def test_several_inputs_and_outputs() -> None:
    model = Model(lambda m, x, y: {"a": m.a(x), "b": (m.b(y),)}, a=conv(3, 4), b=conv(3, 2)).eval()
    done = quick(model, (images(2), images(2)), calibration=[(images(8), images(8, seed=3))])
    found = done.artifact(images(3), images(3))
    assert found["a"].shape == (3, 4, 8, 8)
    assert found["b"][0].shape == (3, 2, 8, 8)

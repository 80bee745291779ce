"""`optimize` from end to end, as a user calls it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blocks import conv, images, model_of
from rewriting import Model
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.report import Report
from graphopt.artifacts.report_text import slower
from graphopt.backends.onnxruntime import backend, lower
from graphopt.compiler import stages
from graphopt.compiler.optimize import Optimized, optimize
from graphopt.evaluation.timing import clock
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import cost as measures
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.targets import find
from graphopt.utils.errors import CaptureError, InputError, NonFiniteError, PassError

DATA = [images(8, seed=s) for s in range(2)]


def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    """Agreement with the float network on images it was not calibrated on."""
    x = images(32, seed=9)
    return float((model(x).argmax(1) == model_of("residual")(x).argmax(1)).double().mean())


@cache
def result() -> tuple[Optimized, int, dict[str, Tensor], nn.Module]:
    """One run shared by the tests of what it returns."""
    model, calls = model_of("residual"), []
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def evaluate(answer: Callable[[Tensor], Tensor]) -> float:
        calls.append(answer)
        return accuracy(answer)

    done = optimize(model, images(2), target="host", runtime="onnxruntime", calibration=DATA, evaluate=evaluate)
    return done, len(calls), before, model


def quick(model: nn.Module, *args: Any, **options: Any) -> Optimized:
    return optimize(
        model, *(args or (images(2),)), **{"target": "host", "measure": False, "calibration": DATA, **options}
    )


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
        "00_Simplify.txt", "01_FoldBatchNorm.txt", "02_DecomposeActivations.txt", "03_Quantize.txt",
        "04_CorrectBias.txt", "capture.txt",
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


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "amr"}, "unknown target 'amr'; did you mean 'arm'"),
        ({"calibration": []}, "calibration data is empty"),
        ({"calibration": [torch.randn(2, 5)]}, "calibration data"),
        ({"estimator": "median"}, "unknown range estimator 'median'"),
        ({"formats": {"nothing*": None}}, "pattern 'nothing\\*' matches no layer"),
        ({"evaluate": lambda model: "good"}, "evaluate must return a number"),
        ({"evaluate": lambda model: float("nan")}, "evaluate returned NaN for the original model"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(nn.Sequential(conv(3, 4), nn.ReLU()).eval(), **options)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"training mode.*call model.eval\(\) first"):
        quick(nn.Sequential(conv(3, 4), nn.Dropout()))


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises((InputError, CaptureError)):
        quick(nn.Sequential(conv(3, 4)).eval(), torch.randn(2, 5, 8, 8))


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to quantize"):
        quick(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval())


def test_a_model_with_nothing_to_quantize_is_deployed_in_float_without_passes() -> None:
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval()
    result = graphopt.optimize(model, images(2), target="x86", passes=[], measure=False)
    assert torch.equal(result.artifact(images(2)), model(images(2)))


def test_a_weight_that_is_not_a_number_is_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises((NonFiniteError, PassError, CaptureError), match=r"2\.weight"):
        quick(model)


@pytest.mark.thorough
def test_answers_to_inputs_that_do_not_fit_are_refused() -> None:
    (artifact, *_), *_ = result()
    with pytest.raises(InputError, match="inputs_0"):
        artifact(torch.randn(2, 3, 9, 9))
    with pytest.raises(InputError, match="the model takes"):
        artifact()


# ---- Interruptions --------------------------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stream() -> Iterator[Tensor]:
        yield images(4)
        raise KeyboardInterrupt

    model = nn.Sequential(conv(3, 4), nn.ReLU()).eval()
    with pytest.raises(KeyboardInterrupt):
        quick(model, calibration=stream)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_an_error_while_measuring_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick(nn.Sequential(conv(3, 4), nn.ReLU()).eval())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(InputError, match="permission denied"):
            artifact.save(tmp_path / "out")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.thorough
def test_a_file_where_the_folder_should_go_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError):
        artifact.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        artifact.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_to_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        graphopt.load(tmp_path / "nothing")


@pytest.mark.thorough
def test_a_one_shot_iterator_calibrates_without_what_needs_a_second_pass() -> None:
    batches = iter([torch.randn(4, 3, 8, 8) for _ in range(3)])
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    report = graphopt.optimize(model, torch.randn(1, 3, 8, 8), target="host", calibration=batches, measure=False).report
    assert "CorrectBias" not in [step.name for step in report.steps]
    assert report.agreement is None
    assert "iterator" in report.missing["agreement"]

"""The target `host`: of the runtimes of this machine, the one that is faster is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import nn

import graphopt
from graphopt.artifacts import registry
from graphopt.artifacts.artifact import Artifact
from graphopt.compiler import placement, runtimes
from graphopt.compiler.options import Measurement, Options
from graphopt.compiler.work import Work
from graphopt.passes.cleanup import FoldBatchNorm
from graphopt.targets import architecture, find, host, host_runtimes
from graphopt.utils.errors import InputError

TVM = pytest.mark.skipif(
    not registry.available("tvm") or "tvm" not in host_runtimes(), reason="needs TVM, and code of its for this machine"
)


def options(**measurement: Any) -> Options:
    return Options(measurement=Measurement(**measurement))


def names(target: str, **measurement: Any) -> list[str]:
    return [found.runtime.name for found in runtimes.candidates(find(target), options(**measurement))]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """What each runtime is said to take."""
    times: dict[str, float] = {}

    def measured(_: Work, *artifacts: Artifact) -> list[float]:
        return [times[artifact.manifest.runtime] for artifact in artifacts]

    monkeypatch.setattr(Work, "milliseconds", measured)
    monkeypatch.setattr(placement, "applies", lambda work: False)  # which measures, too
    return times.__setitem__


def optimized(**chosen: Any) -> Any:
    x = torch.randn(2, 3, 8, 8)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()
    return graphopt.optimize(model, x, target="host", calibration=[x], **chosen)


@TVM
@pytest.mark.parametrize(("faster", "slower"), [("onnxruntime", "tvm"), ("tvm", "onnxruntime")])
def test_the_faster_runtime_is_kept_and_the_report_names_both(
    faster: str, slower: str, told: Callable[[str, float], None]
) -> None:
    told(faster, 1.25)
    told(slower, 2.5)
    result = optimized()
    assert result.artifact.manifest.runtime == faster
    assert result.artifact.manifest.target["name"] == "host"
    (note,) = (note for note in result.report.notes if "'host'" in note)
    assert f"1.25 ms through {faster}" in note
    assert f"2.5 ms through {slower}" in note
    assert f"{faster} is kept" in note
    assert result.report.timings.stages[-2].name == f"{slower}, not kept"
    assert result.report.latency.before == "onnxruntime, float"
    assert result.report.latency.after == f"{faster}, integer"
    assert result.report.integer_macs == 1.0
    x = torch.randn(2, 3, 8, 8)
    simulated = graphopt.simulate(result.graph, host(faster))
    assert torch.equal(result.artifact(x), simulated(x))


@TVM
def test_a_runtime_that_does_not_take_the_model_is_named(told: Callable[[str, float], None]) -> None:
    model, x = nn.Sequential(nn.Conv1d(4, 4, 3)).eval(), torch.randn(2, 4, 16)
    free = {"input": {2: "length"}}
    report = graphopt.optimize(model, x, target="host", calibration=[x], dynamic_shapes=free).report
    (note,) = (note for note in report.notes if note.startswith("tvm does not take it"))
    assert "length" in note
    assert report.latency is not None
    assert report.latency.after == "onnxruntime, integer"


def test_one_runtime_where_nothing_is_measured_or_one_is_asked_for() -> None:
    assert names("host", measure=False) == ["onnxruntime"]
    assert names("host", runtime="onnxruntime") == ["onnxruntime"]
    assert names("x86") == ["onnxruntime"]
    if registry.available("tvm") and "tvm" in host_runtimes():
        assert names("host") == ["onnxruntime", "tvm"]
        assert names("host", runtime="tvm") == ["tvm"]
    target = host().replace(name="host", channel_multiple=4)  # someone's own
    assert [t.runtime.name for t in runtimes.candidates(target, options())] == ["onnxruntime"]


@pytest.mark.thorough
def test_data_that_can_be_read_once_and_passes_in_a_list_are_for_one_runtime() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for chosen in ({"calibration": iter([x])}, {"calibration": [x], "passes": [FoldBatchNorm()]}):
        report = graphopt.optimize(model, x, target="host", **chosen).report  # type: ignore[arg-type]
        assert not any("'host'" in note for note in report.notes)


def test_a_runtime_that_is_not_there_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="'host' runs through onnxruntime"):
        optimized(runtime="cuda")
    with pytest.raises(InputError, match="runtime='tvm' chooses for the target 'host'; 'x86' runs through onnxruntime"):
        graphopt.optimize(nn.ReLU(), torch.randn(1), target="x86", runtime="tvm")


def test_every_runtime_of_this_machine_is_of_its_architecture() -> None:
    assert [host(name).runtime.architecture for name in host_runtimes()] == [architecture()] * len(host_runtimes())

"""Weights that one file cannot hold lie in a second one: written without a copy of them all, found wherever the folder goes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphopt
from graphopt.backends.onnxruntime import artifact as module
from graphopt.backends.onnxruntime.artifact import MODEL, WEIGHTS, lower
from graphopt.ir.graph import Graph
from graphopt.targets import find, machine_here
from graphopt.utils.errors import ArtifactError, InputError

X = torch.randn(4, 3, 16, 12)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 1000)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 64), nn.ReLU(),
        nn.Linear(64, 10, bias=False),
    ).eval()  # fmt: skip


def optimized(**options: Any) -> Any:
    return graphopt.optimize(network(), X, target="x86-avx2", calibration=[X], measure=False, **options)


@pytest.mark.thorough
def test_the_folder_may_go_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"class {n}" for n in range(10)]
    result = optimized(class_labels=labels, preprocessing=graphopt.Preprocessing())
    wanted = result.artifact(X)
    assert set(result.artifact.manifest.files) == {MODEL, WEIGHTS}
    place = result.artifact.save(tmp_path / "first")
    place.rename(tmp_path / "second")
    monkeypatch.chdir(tmp_path / "second")
    loaded = graphopt.load(".")
    assert torch.equal(loaded(X), wanted)
    assert loaded.labels == labels
    model = onnx.load(MODEL)
    onnx.checker.check_model(MODEL)
    assert json.loads({p.key: p.value for p in model.metadata_props}["class_labels"]) == labels
    found = onnx.load(MODEL, load_external_data=False).graph.initializer
    assert {e.value for t in found for e in t.external_data if e.key == "location"} == {WEIGHTS}
    assert f"folder = {str(tmp_path / 'second')!a}" in loaded.usage(tmp_path / "second")


@pytest.mark.thorough
def test_it_answers_what_one_file_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    two = optimized()
    monkeypatch.setattr(module, "ONE_FILE", 2**31)
    one = optimized()
    assert set(one.artifact.manifest.files) == {MODEL}
    assert torch.equal(two.artifact(X), one.artifact(X))
    assert two.report.integer_macs == one.report.integer_macs
    simulation = graphopt.simulate(two.graph, "x86-avx2", machine=machine_here())
    for artifact in (one.artifact, two.artifact):  # which reads values from within the model
        compared = simulation.mismatches(artifact, X)
        assert compared
        assert [line.differing for line in compared] == [0] * len(compared)


@pytest.mark.thorough
def test_a_file_without_its_weights_or_with_others_is_refused(tmp_path: Path) -> None:
    place = optimized().artifact.save(tmp_path / "deployed")
    content = (place / WEIGHTS).read_bytes()
    (place / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was altered"):
        graphopt.load(place)
    (place / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file model\.onnx\.data"):
        graphopt.load(place)


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = optimized().artifact

    def fill(source: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        if Path(target).name == WEIGHTS:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(InputError, match="the disk is full"):
        artifact.save(tmp_path / "deployed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_weights_are_written_in_order(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(12, 30, bias=bias), nn.Linear(30, 12, bias=bias)).eval()
    artifact = lower(Graph.capture(model, X), find("x86"))
    assert torch.allclose(artifact(X), model(X), atol=1e-6)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(artifact.folder / MODEL)).graph.initializer}
    assert np.array_equal(arrays["0.weight_transposed"], model[0].weight.detach().numpy().T)


MEASURE = """
import torch
from torch import nn
from graphopt.backends.onnxruntime import artifact as module
from graphopt.ir.graph import Graph
from graphopt.targets import find
def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
module.ONE_FILE = 2**20
n, layers = 2048, 20
model = nn.Sequential(*(nn.Linear(n, n, bias=bool(k % 2)) for k in range(layers))).eval()
small = Graph.capture(nn.Linear(4, 4).eval(), torch.randn(2, 2, 4))
module.lower(small, find("x86"))  # whatever is imported on the way
graph = Graph.capture(model, torch.randn(1, 1, n))
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
module.lower(graph, find("x86"))
print((memory("VmHWM") - before) / (4 * n * n * layers))
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux")
def test_no_second_copy_of_the_weights_is_made() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of memory cannot be reset here")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3  # of the weights of twenty layers

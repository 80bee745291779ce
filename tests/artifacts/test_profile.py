"""`Artifact.profile`: the kernels of a call, with the layers that they compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rewriting import randomised
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.cli.main import app
from graphopt.utils.errors import InputError

RUNS = 5


class Network(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))).mean((2, 3)))


def artifact(target: str) -> Artifact:
    x = torch.randn(2, 8, 12, 12)
    return graphopt.optimize(randomised(Network()).eval(), x, target=target, calibration=[x], measure=False).artifact


@pytest.fixture(scope="module")
def onnx() -> Artifact:
    return artifact("x86")


@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
def test_every_layer_has_a_kernel_that_took_time(target: str, onnx: Artifact) -> None:
    lowered = onnx if target == "x86" else artifact(target)
    profile = lowered.profile(**lowered.zeros(), runs=RUNS)
    layers = profile.layers()
    assert {"stem", "body", "head"} <= set(layers)
    assert [name for name in layers if name in ("stem", "body", "head")] == ["stem", "body", "head"]
    assert all(layers[name] > 0 for name in ("stem", "body", "head"))
    assert sum(layers.values()) == pytest.approx(profile.kernels_ms)
    assert profile.runtime == lowered.manifest.runtime
    assert profile.runs == RUNS


def test_more_work_takes_more_time(onnx: Artifact) -> None:
    few, many = (onnx.profile(torch.zeros(n, 8, 12, 12), runs=9).layers()["body"] for n in (1, 64))
    assert many > 4 * few


def test_profiling_leaves_the_artifact_as_it_is(onnx: Artifact) -> None:
    x, session = torch.randn(3, 8, 12, 12), onnx.session  # type: ignore[attr-defined]
    before, files = onnx(x), sorted(p.name for p in Path.cwd().iterdir())
    onnx.profile(x, runs=1)
    assert torch.equal(onnx(x), before)
    assert onnx.session is session  # type: ignore[attr-defined]
    assert sorted(p.name for p in Path.cwd().iterdir()) == files


def test_kernels_are_matched_with_layers_only_where_they_run_as_emitted() -> None:
    from graphopt.backends.tvm.profiling import _layers

    sites = [["conv", "a"], ["conv", "b"]]
    assert _layers(["conv", "transpose", "conv"], sites) == ["a", "", "b"]
    assert _layers(["transpose", "conv"], sites) == ["", ""]
    assert _layers(["conv"], []) == [""]


def test_the_text_names_the_slowest_first_and_sums_up_the_rest() -> None:
    kernels = [KernelTime("Conv", 0.001 * n, f"layer{n}") for n in range(1, 41)]
    text = str(Profile(kernels, 1.5, 20, "onnxruntime", 2)).splitlines()
    assert "onnxruntime, 2 threads: 1.5 ms a call, median of 20" in text[0]
    rows = [line for line in text if "layer" in line][1:]
    assert [row.split()[0] for row in rows[:2]] == ["layer40", "layer39"]
    assert any(line.split()[:2] == ["15", "more"] for line in text)
    assert "40 kernels" in text[-1]


def test_what_cannot_be_profiled_says_so(onnx: Artifact) -> None:
    with pytest.raises(InputError, match="runs=0"):
        onnx.profile(torch.zeros(1, 8, 12, 12), runs=0)
    with pytest.raises(InputError, match="input"):
        onnx.profile(torch.zeros(1, 7, 12, 12))
    layer, x = randomised(nn.Sequential(nn.Linear(8, 8))).eval(), torch.randn(2, 8)
    packed = graphopt.optimize(layer, x, target="nnie", calibration=[x], measure=False).artifact
    with pytest.raises(InputError, match="says nothing of its kernels"):
        packed.profile(torch.randn(2, 8))


def test_the_command_prints_and_keeps_the_figures(onnx: Artifact, tmp_path: Path) -> None:
    onnx.save(tmp_path / "deployed")
    command = ["profile", str(tmp_path / "deployed"), "--runs", "3", "--json", str(tmp_path / "profile.json")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "QLinearConv" in result.output
    kept = json.loads((tmp_path / "profile.json").read_text())
    assert kept["runs"] == 3
    assert {k["layer"] for k in kept["kernels"]} >= {"stem", "body", "head"}

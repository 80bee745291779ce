"""The target hexagon on Qualcomm's HTP emulator: whole, or with an error that names what is not; and its context binaries."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, conv_bn, images, model_of
from rewriting import Model
from torch import Tensor, nn
from typer.testing import CliRunner

import graphopt
from graphopt.artifacts.registry import backend
from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.qnn.provider import ARCHITECTURES
from graphopt.cli.main import app
from graphopt.ir.graph import Graph
from graphopt.targets import architecture, find
from graphopt.utils.errors import ArtifactError, InputError

needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None or architecture() != "x86_64",
    reason="the HTP emulator needs graphopt[qnn] on x86-64",
)
HEXAGON = find("hexagon")
WIDE = HEXAGON.replace(activations=HEXAGON.formats.more_activations[0])
DATA = [images(8, seed=s) for s in range(4)]


def pools() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = F.avg_pool2d(F.max_pool2d(y, 3, 2, 1), 2) + F.adaptive_avg_pool2d(y, 2)
        return m.head(y.flatten(1))  # type: ignore[no-any-return]

    return Model(body, stem=conv_bn(3, 8), head=nn.Linear(32, 5))


def gates() -> nn.Module:
    """What reads one value by sigmoid, hard-sigmoid, hard-swish, leaky relu and upsampling, joined."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        parts = [
            y * torch.sigmoid(m.gate(y)),
            F.hardswish(y),
            F.leaky_relu(m.other(y), 0.1),
            y * F.hardsigmoid(m.hard(y)),
        ]
        small = F.max_pool2d(torch.cat(parts, 1), 2)
        return m.head(m.join(F.interpolate(small, scale_factor=2.0)).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(
        body, stem=conv_bn(3, 8, activation=nn.Identity), gate=conv(8, 8, 1), hard=conv(8, 8, 1), other=conv(8, 8),
        join=conv_bn(32, 8, 1), head=nn.Linear(8, 5),
    )  # fmt: skip


def strided() -> nn.Module:
    """Grouped, dilated and strided convolutions, one padded on two sides only."""
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.ReLU6(), conv_bn(8, 16, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 5),
    )  # fmt: skip


OWN = {"pools": pools, "gates": gates, "strided": strided}


def network(name: str) -> nn.Module:
    if name in BLOCKS:
        return model_of(name)
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return OWN[name]().eval()


@cache
def optimized(name: str, bits: int = 8) -> graphopt.compiler.optimize.Optimized:
    target = HEXAGON if bits == 8 else WIDE
    return graphopt.optimize(
        network(name), images(1), target=target, calibration=DATA, estimator="minmax", measure=False
    )


# ---- Without onnxruntime-qnn ----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact = optimized("plain").artifact
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "onnxruntime_qnn" else find_spec(n))
    with pytest.raises(InputError, match=r"pip install 'graphopt\[qnn\]'"):
        graphopt.optimize(model_of("plain"), images(1), target="hexagon", device="htp")
    with pytest.raises(InputError, match=r"pip install 'graphopt\[qnn\]'"):
        artifact.on("htp")
    with pytest.raises(InputError, match=r"pip install 'graphopt\[qnn\]'"):
        artifact.compile(tmp_path / "contexts")
    assert list(tmp_path.iterdir()) == []
    assert backend("onnxruntime").audit(artifact).share == 1


@pytest.mark.thorough
def test_an_unknown_architecture_is_refused_with_those_there_are(tmp_path: Path) -> None:
    artifact = optimized("plain").artifact
    with pytest.raises(InputError, match=r"unknown Hexagon architecture 'v66'; known: v68, v69, v73, v75, v79, v81"):
        artifact.compile(tmp_path / "contexts", ["v73", "v66"])
    with pytest.raises(InputError, match="unknown Hexagon architecture 'v7'"):
        artifact.on("htp:v7")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_what_is_made_for_other_targets_does_not_run_on_htp(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime does not run on devices over the network: take a tvm-"):
        graphopt.optimize(model_of("plain"), images(1), target="hexagon", device="rpc://board:9090")
    with pytest.raises(InputError, match="HTP runs what is made for the target hexagon, not for arm"):
        graphopt.optimize(model_of("plain"), images(1), target="arm", device="htp")
    artifact = lower(Graph.capture(model_of("plain"), (images(1),)), find("arm"))
    with pytest.raises(InputError, match="not for arm; optimize with target='hexagon'"):
        artifact.on("htp")
    with pytest.raises(InputError, match="for arm is ready to run; what compiles are those for hexagon and"):
        artifact.compile(tmp_path / "contexts")


# ---- On the emulator ------------------------------------------------------------------------------------------------


QUICK = {
    ("residual", 8), ("inverted residual", 8), ("squeeze-excite linear", 8), ("gates", 8), ("strided", 8), ("pools", 16),
    ("gates", 16),
}  # fmt: skip
EVERY = [
    pytest.param(name, bits, marks=() if (name, bits) in QUICK else pytest.mark.slow)
    for name in (*BLOCKS, *OWN)
    for bits in (8, 16)
]


@needs_qnn
@pytest.mark.parametrize("name, bits", EVERY)
def test_every_block_runs_wholly_on_htp_and_answers_as_simulated(name: str, bits: int) -> None:
    done = optimized(name, bits)
    there, x = done.artifact.on("htp"), images(6, seed=9)
    simulate = graphopt.simulate(done.graph, HEXAGON if bits == 8 else WIDE)
    theirs, ours = (torch.cat([model(image) for image in x.split(1)]) for model in (there, simulate))
    span = float(ours.max() - ours.min())
    assert float((theirs - ours).abs().max()) < (4 / 255 if bits == 8 else 20 / 65535) * span
    assert done.report.integer_macs == 1
    assert done.report.float_operators == []


@needs_qnn
def test_optimize_reports_how_the_device_answers_and_that_its_time_is_not_the_hardwares() -> None:
    result = graphopt.optimize(
        model_of("residual"), images(1), target="hexagon", calibration=DATA, estimator="minmax", device="htp:v75",
        evaluate=lambda model: float(torch.cat([model(x) for x in DATA[0].split(1)]).argmax(1).float().mean()),
    )  # fmt: skip
    assert any(
        note.startswith("htp:v75 (emulator) differs from its simulation by") and "have the same class" in note
        for note in result.report.notes
    )
    assert result.report.latency is None
    assert result.report.missing["latency"] == "htp:v75 (emulator) takes other times than the hardware"
    assert result.report.agreement is not None
    assert result.report.accuracy_after is not None
    assert result.artifact.device == ""


@needs_qnn
def test_codes_inside_the_model_are_compared_kernel_by_kernel() -> None:
    done = optimized("residual")
    lines = graphopt.simulate(done.graph, HEXAGON, machine="x86_64").mismatches(done.artifact.on("htp"), images(1))
    assert [line.kernel for line in lines].count("conv") == 3
    assert all(line.largest <= 1 for line in lines)


@needs_qnn
def test_an_operator_that_htp_does_not_take_is_named() -> None:
    class Arcs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = conv_bn(3, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.asinh(self.first(x)).mean((2, 3)))  # type: ignore[no-any-return]

    result = graphopt.optimize(Arcs().eval(), images(1), target="hexagon", calibration=DATA, measure=False)
    with pytest.raises(ArtifactError, match=r"HTP does not take 1 of \d+ operators of Arcs: \w*asinh \(Asinh"):
        result.artifact.on("htp")
    floating = {f.operator: f.reason for f in result.report.float_operators}
    assert set(floating) == {"Asinh", "ReduceMean"}  # which averages floats that no grid holds
    assert floating["Asinh"] == "HTP does not take it, the CPU computes it" != floating["ReduceMean"]


@needs_qnn
def test_a_linear_layer_with_a_float_result_is_audited_as_left_to_the_cpu_and_refused(tmp_path: Path) -> None:
    target = HEXAGON.replace(float_output=frozenset({"linear"}))
    result = graphopt.optimize(model_of("plain"), images(1), target=target, calibration=DATA, measure=False)
    assert [(f.site, f.operator) for f in result.report.float_operators] == [("head", "Gemm")]
    assert "HTP does not take it" in result.report.float_operators[0].reason
    assert 0 < result.report.integer_macs < 1
    message = r"HTP does not take 1 of .*head \(Gemm with a float result\); quantize"
    for use in (lambda: result.artifact.on("htp"), lambda: result.artifact.compile(tmp_path / "contexts", ["v73"])):
        with pytest.raises(ArtifactError, match=message):
            use()
    assert list(tmp_path.iterdir()) == []


@needs_qnn
def test_a_pool_of_large_windows_has_one_grid_because_htp_saturates_on_another() -> None:
    model = nn.Sequential(conv_bn(3, 8), nn.AvgPool2d(4), nn.Conv2d(8, 5, 1)).eval()
    apart = WIDE.replace(shares=frozenset())  # means have a finer grid than what they are of
    x, errors = images(1, seed=9), []
    for target in (WIDE, apart):
        done = graphopt.optimize(model, x, target=target, calibration=DATA, estimator="minmax", measure=False)
        simulation = graphopt.simulate(done.graph, target, machine="x86_64")
        pooled = simulation.mismatches(done.artifact.on("htp"), x)[2]
        errors.append(pooled.largest)
        assert [v.rule for v in graphopt.check(done.artifact, WIDE)] == ["moved-grid"] * (target is apart)
    assert errors[0] <= 1
    assert errors[1] > 50


# ---- Context binaries -----------------------------------------------------------------------------------------------


@needs_qnn
def test_contexts_of_all_architectures_are_written_and_answer_as_the_model_they_were_made_of(tmp_path: Path) -> None:
    artifact, x = optimized("residual").artifact, images(1, seed=5)
    folder = artifact.compile(tmp_path / "contexts")
    names = [name for a in ARCHITECTURES for name in (f"{a}.onnx", f"{a}_qnn.bin")]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "manifest.json"])
    assert len({(folder / f"{a}_qnn.bin").read_bytes() for a in ("v68", "v73", "v75", "v81")}) == 4
    loaded = graphopt.load(folder)
    assert loaded.manifest.versions["onnxruntime-qnn"]
    for name in ARCHITECTURES:
        assert [n.op_type for n in onnx.load(str(folder / f"{name}.onnx")).graph.node] == ["EPContext"]
        assert torch.equal(loaded.on(f"htp:{name}")(x), artifact.on(f"htp:{name}")(x))
    with pytest.raises(ArtifactError, match=r"compiled for Hexagon v68, .* run it \.on"):
        loaded(x)


@needs_qnn
def test_the_command_compiles_and_shows_contexts(tmp_path: Path) -> None:
    optimized("plain").artifact.save(tmp_path / "deployed")
    command = ["compile", str(tmp_path / "deployed"), "--architecture", "v73", "--out", str(tmp_path / "contexts")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "contexts" / "manifest.json").read_text())["options"]["contexts"] == {
        "v73": "v73.onnx"
    }
    assert "v73_qnn.bin" in CliRunner().invoke(app, ["show", str(tmp_path / "contexts")]).output
    loaded = graphopt.load(tmp_path / "contexts")
    with pytest.raises(InputError, match="holds contexts for v73, none for v75"):
        loaded.on("htp:v75")
    with pytest.raises(InputError, match="holds contexts already"):
        loaded.compile(tmp_path / "again")
    assert CliRunner().invoke(app, command).exit_code == 0  # replaces what graphopt wrote

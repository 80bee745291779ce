"""Devices over the network: artifacts run, timed and compared through TVM's RPC server, here on loopback and under qemu."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulation
import pytest
import rpc_server
import torch
from blocks import conv, images, model_of
from torch import nn
from tvm_lowering import lower_through_tvm
from typer.testing import CliRunner

import graphopt
from graphopt.cli.main import app
from graphopt.ir.graph import Graph
from graphopt.targets import architecture, find
from graphopt.utils.errors import ArtifactError, InputError

needs_x86 = pytest.mark.skipif(architecture() != "x86_64", reason="the server on loopback is an x86-64 machine")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
X86 = find("tvm-x86")
COPY = f'{sys.executable} "{Path(__file__).parents[1] / "helpers" / "copy_object.py"}"'  # in place of a linker


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with rpc_server.serving() as port:
        yield f"rpc://{rpc_server.HOST}:{port}"


@pytest.mark.thorough
@needs_x86
def test_an_artifact_answers_on_a_device_what_it_answers_here(server: str) -> None:
    network, x = model_of("residual"), images(5)
    artifact = lower_through_tvm(Graph.capture(network, (x[:2],)), X86)
    there = artifact.on(server)
    assert torch.equal(there(x), artifact(x))
    there.set_threads(2)
    assert torch.equal(artifact.on(server)(x), artifact(x))  # its library is not written over
    assert torch.equal(there(x), artifact(x))
    assert 0 < there.milliseconds(x[:2]) < 1000
    with pytest.raises(InputError, match="one call of the kernels computes 2 samples"):
        there.milliseconds(x)
    assert there.refusal == ""
    assert there.device.startswith(server)


@pytest.mark.thorough
@needs_x86
def test_optimize_measures_on_the_device_and_says_whether_it_answers_as_simulated(server: str) -> None:
    data = images(16)
    result = graphopt.optimize(
        model_of("plain"), data[:1], target=X86, calibration=data, estimator="minmax", device=server,
        evaluate=lambda model: float(model(data).argmax(1).float().mean()),
    )  # fmt: skip
    report = result.report
    assert report.latency is not None
    assert report.latency.host.startswith(server)
    assert report.latency.before_ms > 0
    assert report.accuracy_after is not None
    assert any(
        f"{report.latency.host} answered the example with 0 of 5 numbers unlike" in note for note in report.notes
    )
    assert result.artifact.device == ""
    assert torch.equal(result.artifact.on(server)(data), result.artifact(data))


@pytest.mark.thorough
@needs_x86
@pytest.mark.parametrize("tuner", ["tiles", "metaschedule"])
def test_kernels_are_tuned_on_the_device(server: str, tuner: str, tmp_path: Path) -> None:
    if tuner == "metaschedule":
        pytest.importorskip("xgboost", reason="the search needs graphopt[metaschedule]")
    path, x = tmp_path / "tuned.jsonl", images(3)
    how: dict[str, Any] = {"tune": 12, "tuner": tuner, "tune_database": path, "device": server}
    network = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32)).eval()
    result = graphopt.optimize(network, images(1), target=X86, calibration=images(4), **how)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == 12
    assert all(0.01 < entry["speedup"] < 100 for entry in found)
    assert torch.equal(result.artifact.on(server)(x), graphopt.simulate(result.graph, X86)(x))


@pytest.mark.thorough
@needs_x86
def test_tuning_for_a_device_of_another_architecture_is_refused_before_any_work(server: str) -> None:
    target = find("tvm-cortex-a76").replace(compiler=COPY)
    with pytest.raises(ArtifactError, match=r"what is tuned was compiled for cortex-a76 .*is another architecture"):
        graphopt.optimize(nn.Identity(), images(1), target=target, tune=5, device=server)


@pytest.mark.thorough
@needs_x86
def test_a_device_of_another_architecture_is_refused(server: str) -> None:
    target = find("tvm-cortex-a76")
    artifact = lower_through_tvm(Graph.capture(model_of("plain"), (images(1),)), target.replace(compiler=COPY))
    with pytest.raises(
        ArtifactError, match=r"compiled for cortex-a76 .*another architecture: take a target for x86_64"
    ):
        artifact.on(server)


@pytest.mark.thorough
@needs_x86
def test_a_library_the_device_cannot_load_is_refused_with_its_reason(server: str) -> None:
    artifact = lower_through_tvm(Graph.capture(model_of("plain"), (images(1),)), X86.replace(compiler=COPY))
    for _ in range(2):  # the server is free again behind an error
        with pytest.raises(ArtifactError, match=r"cannot load it: .*\.so"):  # an object file, not linked
            artifact.on(server)


def test_a_device_that_is_not_there_says_what_to_start() -> None:
    with pytest.raises(InputError, match=r"rpc://127.0.0.1:1 .*refused.*python -m tvm.exec.rpc_server --host 0.0.0.0"):
        graphopt.optimize(model_of("plain"), images(1), target=X86, device="rpc://127.0.0.1:1")
    with pytest.raises(InputError, match=r"python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 1"):
        graphopt.optimize(model_of("plain"), images(1), target=X86, device="tracker://127.0.0.1:1/pi")


@pytest.mark.parametrize("device", ["pi", "rpc://pi", "rpc://pi:99999", "tracker://lab:9190", "http://pi:9090"])
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=r"a device is rpc://host:port, or tracker://host:port/key, got"):
        graphopt.optimize(model_of("plain"), images(1), target=X86, device=device)


def test_a_runtime_without_devices_says_so() -> None:
    with pytest.raises(InputError, match=r"onnxruntime does not run on devices .* tvm-"):
        graphopt.optimize(model_of("plain"), images(1), target="arm", device="rpc://pi:9090")


def test_the_command_takes_a_device() -> None:
    command = [
        "optimize",
        "blocks:plain",
        "--target",
        "tvm-x86",
        "--input-shape",
        "1,3,8,8",
        "--device",
        "rpc://127.0.0.1:1",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "no device answers at rpc://127.0.0.1:1" in result.output


@pytest.mark.thorough
@needs_x86
def test_a_tracker_lends_the_device_of_a_key() -> None:
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    x = images(2)
    artifact = lower_through_tvm(Graph.capture(model_of("plain"), (x,)), X86)
    with rpc_server.serving("tracker") as port, rpc_server.serving(str(port), "board"):
        place = f"tracker://{rpc_server.HOST}:{port}"
        there = artifact.on(f"{place}/board")
        assert torch.equal(there(x), artifact(x))
        with pytest.raises(InputError, match=r"knows no device 'pi', but \['board'\]; start on it: .*--key pi"):
            artifact.on(f"{place}/pi")


@pytest.mark.slow
@pytest.mark.skipif(bool(emulation.arm("max").missing), reason=emulation.arm("max").missing)
def test_an_emulated_arm_device_answers_as_simulated() -> None:
    data, target = images(16), find("tvm-cortex-a76")
    emulated = emulation.arm("cortex-a76")
    command = emulated.command(emulated.python, Path(rpc_server.__file__))
    with rpc_server.serving(command=command) as port:
        device = f"rpc://{rpc_server.HOST}:{port}"
        result = graphopt.optimize(
            model_of("residual"), data[:1], target=target, calibration=data, estimator="minmax", device=device
        )
        assert result.report.latency is not None
        assert any("0 of 5 numbers unlike its simulation" in note for note in result.report.notes)
        there = result.artifact.on(device)
        assert torch.equal(there(data), graphopt.simulate(result.graph, target)(data))
        x86 = lower_through_tvm(Graph.capture(model_of("plain"), (data[:1],)), X86)
        with pytest.raises(
            ArtifactError, match=r"cannot load it"
        ):  # with the runtime alone it does not tell what it is
            x86.on(device)

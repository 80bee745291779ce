"""TVM artifacts: saved, loaded, batched and timed like any other; code for other machines; errors that say what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import conv, images, model_of
from rewriting import Model
from simulated import quantized
from torch import Tensor, nn
from tvm_lowering import lower_through_tvm

import graphopt
from graphopt.ir.graph import Graph
from graphopt.targets import Runtime, architecture, find
from graphopt.utils.errors import ArtifactError, GraphoptError, InputError

needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
needs_x86 = pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")
X86 = find("tvm-x86")
COPY = f'{sys.executable} "{Path(__file__).parents[1] / "helpers" / "copy_object.py"}"'  # in place of a cross compiler
MACHINES = {
    "tvm-cortex-a53": 183,
    "tvm-cortex-a76": 183,
    "tvm-neoverse-n1": 183,
    "tvm-armv7": 40,
    "tvm-riscv64": 243,
}  # of ELF


def small() -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def lowered(model: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    return lower_through_tvm(Graph.capture(model, inputs), options.pop("target", X86), **options)


# ---- Without TVM ----------------------------------------------------------------------------------------------------


def test_without_tvm_a_target_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tvm" else find_spec(name))
    with pytest.raises(InputError, match=r"pip install 'graphopt\[tvm\]'"):
        graphopt.optimize(small(), images(1), target="tvm-x86")


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no runtime 'tflite'; it has executorch, onnxruntime, packed, tvm"):
        graphopt.optimize(small(), images(1), target=X86.replace(runtime=Runtime("tflite", "x86_64")))


# ---- On this machine ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_optimize_deploys_measures_saves_and_loads(tmp_path: Path) -> None:
    data = images(32)
    result = graphopt.optimize(model_of("residual"), data[:1], target="tvm-x86", calibration=data, estimator="minmax")
    assert result.report.integer_macs == 1
    assert result.report.latency is not None
    assert result.report.latency.after == "tvm, integer"
    assert result.report.agreement is not None
    folder = result.artifact.save(tmp_path / "deployed")
    assert sorted(p.name for p in folder.iterdir()) == ["kernels.json.xz", "manifest.json", "model.so"]
    loaded = graphopt.load(folder)
    loaded.set_threads(2)
    assert torch.equal(loaded(data), result.artifact(data))
    assert torch.equal(loaded(data.numpy()), graphopt.simulate(result.graph, "tvm-x86")(data))
    assert loaded.manifest.versions["apache-tvm"]


@needs_tvm
@needs_x86
def test_any_batch_is_computed_in_slices_of_the_compiled_one() -> None:
    model = small()
    artifact = lowered(model, images(2), batch=4)
    with torch.no_grad():
        for count in (1, 4, 6, 9):
            x = images(count, seed=count)
            torch.testing.assert_close(artifact(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="the batch is empty"):
        artifact(images(0))


@needs_tvm
@needs_x86
@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        (lambda m, x: x.sum(), ""),
        (lambda m, x: x.sum(0), "3, 8, 8"),
        (lambda m, x: torch.cat([x, x, x]), r"3\*batch, 3, 8, 8"),
        (lambda m, x: x.flatten(0, 1) * 2, r"3\*batch, 8, 8"),
        (lambda m, x: nn.functional.pad(x.flatten(1), (0, 0, 1, 0)), r"batch \+ 1, 192"),
        (lambda m, x: x[:, :1, :1, :1].expand(-1, x.shape[0], -1, -1), "batch, batch, 1, 1"),
    ],
)
def test_an_output_with_other_rows_than_one_for_each_sample_is_refused_where_the_batch_is_free(
    body: Callable[..., Tensor], sizes: str
) -> None:
    model = Model(body).eval()
    with pytest.raises(InputError, match=rf"output '\w+' of shape \[{sizes}\] has not one row.*dynamic_batch=False"):
        lowered(model, images(2))
    graph, x = Graph.capture(model, images(2), dynamic_batch=False), images(2)
    torch.testing.assert_close(lower_through_tvm(graph, find("tvm-x86"))(x), model(x), rtol=1e-4, atol=1e-5)


class Shares(nn.Module):
    """Shares of each sample in its batch: of one sample alone always 1, which is all that ranges then know."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.score(x).softmax(-2)
        return found


@needs_tvm
@pytest.mark.parametrize("count", [1, 2])
def test_samples_that_are_mixed_are_found_behind_quantizers_that_saturate(count: int) -> None:
    torch.manual_seed(0)
    graph = quantized(Shares().eval(), "tvm-x86", torch.randn(count, 1))
    with pytest.raises(InputError, match=r"softmax.* mixes the samples of a batch"):
        lower_through_tvm(graph, X86)


@needs_tvm
@needs_x86
@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (lambda m, x: m.conv(x) * x.shape[0], "mul"),
        (lambda m, x: m.conv(x).mean((1, 2, 3)) / x.shape[0], "div"),
        (lambda m, x: m.conv(x) + torch.arange(x.shape[0])[:, None, None, None], "arange|add"),
        (lambda m, x: m.conv(x).mean((2, 3)).tril(1), "tril"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_what_asks_for_a_samples_number_or_place_is_refused_where_the_batch_is_free(
    body: Callable[..., Tensor], operator: str, count: int
) -> None:
    """In slices every sample would be the first of as many as a slice has."""
    model = Model(body, conv=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(InputError, match=rf"aten\.({operator}).* depends on how many.*dynamic_batch=False"):
        lower_through_tvm(Graph.capture(model, torch.randn(count, 3, 8, 8)), X86)
    fixed = Graph.capture(model, x := torch.randn(3, 3, 8, 8), dynamic_batch=False)
    with torch.no_grad():
        torch.testing.assert_close(lower_through_tvm(fixed, X86)(x), model(x))


@pytest.mark.thorough
@needs_tvm
@needs_x86
@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (lambda m, x: m.conv(x) + x[:1].mean(), "slice|mean|add"),
        (lambda m, x: m.conv(x).softmax(0), "softmax"),
        (lambda m, x: m.conv(x) - m.conv(x).amax(0), "sub"),
        (lambda m, x: m.conv(x).flip(0), "flip"),
        (lambda m, x: m.conv(x).cumsum(0), "cumsum"),
        (lambda m, x: (m.conv(x) == m.conv(x)[:1]).float(), "eq"),
        (lambda m, x: nn.functional.pad(m.conv(x), (0, 0, 0, 0, 0, 0, -1, 1)), "pad"),
        (lambda m, x: nn.functional.pad(m.conv(x), (0, 0, 0, 0, 0, 0, 1, -1)), "pad"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_samples_that_are_mixed_are_refused_where_the_batch_is_free(
    body: Callable[..., Tensor], operator: str, count: int
) -> None:
    model = Model(body, conv=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(InputError, match=rf"aten\.({operator}).* mixes the samples of a batch.*dynamic_batch=False"):
        lowered(model, images(count))
    graph, x = Graph.capture(model, images(count), dynamic_batch=False), images(count)
    with torch.no_grad():
        torch.testing.assert_close(lower_through_tvm(graph, find("tvm-x86"))(x), model(x), rtol=1e-4, atol=1e-5)


@needs_tvm
def test_a_free_batch_of_at_least_three_is_refused() -> None:
    model = Model(lambda m, x: (m.linear(x) @ m.linear(x).transpose(0, 1))[:, 2], linear=nn.Linear(4, 4)).eval()
    with pytest.raises(InputError, match=r"'batch' goes from 3 upwards, and TVM kernels.*dynamic_batch=False"):
        lowered(model, torch.randn(3, 4))


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_samples_side_by_side_are_not_mixed() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            turned = x.transpose(0, 1).flip(0).transpose(0, 1)
            return (turned.reshape(-1, 64).softmax(1).reshape(-1, 3, 8, 8) * 2).amax((1, 2))

    x = images(5)
    torch.testing.assert_close(lowered(Turned().eval(), images(2))(x), Turned()(x), rtol=1e-4, atol=1e-5)


@needs_tvm
@needs_x86
def test_nested_inputs_and_outputs_keep_their_structure() -> None:
    class Nested(nn.Module):
        def forward(self, pair: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            return pair["a"] + pair["b"], [pair["a"].relu()]

    given = {"a": torch.randn(2, 3), "b": torch.randn(2, 3)}
    total, (positive,) = lowered(Nested().eval(), given)(given)
    torch.testing.assert_close(total, given["a"] + given["b"])
    assert torch.equal(positive, given["a"].relu())


BINDING = """
import os, sys, graphopt, torch
artifact, before = graphopt.load(sys.argv[1]), os.sched_getaffinity(0)
artifact(torch.zeros(1, 3, 8, 8))
assert os.sched_getaffinity(0) == before, os.sched_getaffinity(0)
artifact.set_threads(2)
artifact(torch.zeros(1, 3, 8, 8))
import tvm
assert tvm.get_global_func("runtime.NumThreads")() == min(2, os.cpu_count())
"""


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_running_binds_the_process_to_no_core_and_threads_are_those_asked_for(tmp_path: Path) -> None:
    folder = lowered(small(), images(1)).save(tmp_path / "deployed")
    limited = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", BINDING, folder], env=limited, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_a_loaded_artifact_cannot_be_compared_inside_and_says_so(tmp_path: Path) -> None:
    result = graphopt.optimize(small(), images(1), target="tvm-x86", calibration=images(4), measure=False)
    loaded = graphopt.load(result.artifact.save(tmp_path / "deployed"))
    with pytest.raises(InputError, match="does not hold its graph"):
        graphopt.simulate(result.graph, "tvm-x86").mismatches(loaded, images(1))


# ---- For other machines ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
@needs_tvm
@pytest.mark.parametrize("name", MACHINES)
def test_code_for_other_machines_is_generated_and_kept_from_running_here(name: str, tmp_path: Path) -> None:
    target = find(name).replace(compiler=COPY)
    artifact = lowered(small(), images(1), target=target)
    header = (artifact.folder / "model.so").read_bytes()[:20]
    assert struct.unpack_from("<4s14xH", header) == (b"\x7fELF", MACHINES[name])
    loaded = graphopt.load(artifact.save(tmp_path / "deployed"))
    with pytest.raises(
        ArtifactError, match=rf"compiled for {target.runtime.generated.cpu} .* copy the folder to such a device"
    ):
        loaded(images(1))


@pytest.mark.thorough
@needs_tvm
def test_the_report_for_another_machine_is_that_of_the_simulation() -> None:
    def positive(f: Any) -> float:
        return float((f(images(8)) > 0).float().mean())

    target = find("tvm-cortex-a76").replace(compiler=COPY)
    result = graphopt.optimize(small(), images(1), target=target, calibration=images(8), evaluate=positive)
    assert result.report.accuracy_after == positive(graphopt.simulate(result.graph, target))
    assert result.report.agreement is not None
    assert result.report.latency is None
    assert any("are those of its simulation" in note for note in result.report.notes)


@pytest.mark.thorough
@needs_tvm
def test_a_missing_cross_compiler_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install the Debian package g\\+\\+-aarch64-linux-gnu"):
        lowered(small(), images(1), target=find("tvm-cortex-a72"))
    with pytest.raises(InputError, match="there is no compiler 'zig'"):
        lowered(small(), images(1), target=find("tvm-riscv64").replace(compiler="zig c++"))
    with pytest.raises(
        InputError, match=r"no compiler is known that links for arm64-apple-macos.*target\.replace\(compiler="
    ):
        lowered(small(), images(1), target=find("tvm-apple-m1"))


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_a_linker_that_fails_is_quoted() -> None:
    with pytest.raises(GraphoptError, match=r"false could not link model.so: it wrote nothing"):
        lowered(small(), images(1), target=X86.replace(compiler="false"))


@needs_tvm
def test_an_unknown_cpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"knows no CPU 'cortex-a67' .* did you mean 'cortex-a"):
        lowered(small(), images(1), target=find("tvm-arm64").replace(cpu="cortex-a67"))


@pytest.mark.thorough
@needs_tvm
@needs_x86
def test_features_this_machine_lacks_are_for_cross_compilation_only() -> None:
    target = X86.replace(triple="x86_64-linux-gnu", cpu="x86-64-v2", features=("+amx-fp8",), compiler="g++")
    artifact = lowered(small(), images(1), target=target)
    with pytest.raises(ArtifactError, match=r"which has .*amx-fp8.*; this machine has not"):
        artifact(images(1))


@needs_tvm
def test_the_code_of_another_architecture_needs_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.backends.tvm.build.architecture", lambda: "riscv64")
    with pytest.raises(InputError, match="name a CPU"):
        lowered(small(), images(1))

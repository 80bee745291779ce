"""64-bit ARM without ARM hardware: artifacts run on emulated CPUs and answer what `graphopt.simulate` said they would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from blocks import BLOCKS, images, model_of, simulated
from emulation import arm
from qdq import File, after_conv, dropped_mean, residual, symmetric_relu
from qlinear import TYPES, model, pairs
from torch import Tensor
from tvm_lowering import lower_through_tvm

import graphopt
from graphopt.artifacts.backend import Tuning
from graphopt.backends.onnxruntime import lower
from graphopt.backends.onnxruntime.artifact import expose
from graphopt.backends.onnxruntime.audit.reading import Kind, executed, optimized
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.arithmetic import all_codes
from graphopt.lowering.integers.kernels import AveragePool, Softmax, global_mean, multiply, sigmoid
from graphopt.lowering.integers.machines import add_avx2, add_neon
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.targets import find

CPUS = ["cortex-a53", "cortex-a76", "max"]
MISSING = arm("max").missing
needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="the TVM backend needs graphopt[tvm]")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SIGNED = {"qdqisint8allowed": "1"}  # as artifacts configure their sessions


# ---- Files of others ------------------------------------------------------------------------------------------------

OPEN = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.optimized_model_filepath, options.log_severity_level = sys.argv[2], 3
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize(
    "body", [residual, dropped_mean, symmetric_relu, after_conv("HardSwish"), after_conv("Sigmoid")]
)
def test_what_an_audit_reads_for_arm_is_what_runs_there(body: Any, tmp_path: Path) -> None:
    f, script = File(1, 4, 8, 8), tmp_path / "open.py"
    path = f.save(tmp_path / "model.onnx", body(f, f.on_grid("x")))
    script.write_text(OPEN)
    emulator = arm("cortex-a76")
    emulator.run(emulator.python, script, path, tmp_path / "arm.onnx")
    there = executed(onnx.load(tmp_path / "arm.onnx"), "there")
    here = executed(optimized(path, defaults=True, signed=True), "here")
    for kind in (Kind.INTEGER, Kind.FLOAT):
        assert sorted(n.op_type for n in here.of(kind)) == sorted(n.op_type for n in there.of(kind))


# ---- TVM ------------------------------------------------------------------------------------------------------------


def on_arm(artifact: Any, cpu: str, x: Tensor) -> Tensor:
    batch = artifact.manifest.options["batch"]
    (answer,) = arm(cpu).library(artifact.folder / "model.so", [x.numpy()], batch)
    return torch.from_numpy(answer)


@needs_tvm
@pytest.mark.parametrize(("block", "cpu"), [("inverted residual", "cortex-a53"), ("residual", "cortex-a76")])
def test_integers_compiled_for_arm_answer_what_the_simulation_answers(block: str, cpu: str) -> None:
    target, x = find(f"tvm-{cpu}"), images(8, seed=3)
    graph = simulated(model_of(block), target)
    artifact = lower_through_tvm(graph, target)
    expected = graphopt.simulate(graph, target)(x)
    assert torch.equal(on_arm(artifact, cpu, x), expected)
    assert torch.equal(on_arm(artifact, "max", x), expected)


@needs_tvm
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_sampled_schedules_answer_on_arm_what_the_simulation_answers(cpu: str, tmp_path: Path) -> None:
    from test_tvm_metaschedule import network, remember_samples

    target, x = find(f"tvm-{cpu}"), images(4, seed=3)
    graph = simulated(network(), target)
    assert remember_samples(graph, target, tmp_path / "tuned.jsonl") >= 2
    artifact = lower_through_tvm(graph, target, tuning=Tuning(database=tmp_path / "tuned.jsonl"))
    assert torch.equal(on_arm(artifact, cpu, x), graphopt.simulate(graph, target)(x))


@needs_tvm
@pytest.mark.parametrize("cpu", ["cortex-a76", "max"])
def test_float16_compiled_for_arm_answers_what_the_simulated_graph_answers(cpu: str) -> None:
    target, x = find("tvm-cortex-a76-fp16"), images(8, seed=3)
    graph = simulated(model_of("residual"), target)
    answers, expected = on_arm(lower_through_tvm(graph, target), cpu, x), graph(x).detach()
    assert float((answers - expected).abs().max()) < 2e-3 * float(
        expected.abs().max()
    )  # a value may round the other way


@needs_tvm
@pytest.mark.parametrize("cpu", CPUS)
def test_floats_compiled_for_arm_differ_from_x86_by_rounding(cpu: str) -> None:
    network, x = model_of("squeeze-excite"), images(4, seed=3)
    target = find("tvm-arm64" if cpu == "max" else f"tvm-{cpu}")
    found = on_arm(lower_through_tvm(Graph.capture(network, (x[:2],)), target), cpu, x)
    with torch.no_grad():
        torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------------


class OnCpu:
    """In place of this machine: artifacts of several graphs, run on one emulated CPU at once."""

    def __init__(self, cpu: str, folder: Path, graphs: dict[str, Graph], x: Tensor) -> None:
        self.simulations = {name: graphopt.simulate(graph, "arm") for name, graph in graphs.items()}
        jobs, self.names = {}, {}
        for name, graph in graphs.items():
            place = folder / name
            place.mkdir()
            codes = list(self.simulations[name].codes(x[:2]))
            self.names[name] = expose(lower(graph, find("arm")), codes, place)
            jobs[place] = [x.numpy()]
        found = arm(cpu).onnxruntime(jobs, **SIGNED)
        self.values = {name: found[folder / name] for name in graphs}

    def check(self, name: str, x: Tensor) -> None:
        """Every code and the answer are the simulation's, without a single difference."""
        ours, theirs = self.simulations[name].codes(x), self.values[name]
        wrong = {key: int((ours[key] != torch.from_numpy(theirs[key])).sum()) for key in self.names[name]}
        assert len(wrong) > 3
        assert not any(wrong.values()), {key: count for key, count in wrong.items() if count}
        (answer,) = [value for key, value in theirs.items() if key not in wrong]
        assert torch.equal(self.simulations[name](x), torch.from_numpy(answer))


def test_every_code_in_onnx_runtime_is_the_simulations(tmp_path: Path) -> None:
    compare(["inverted residual"], "cortex-a76", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_every_code_of_every_block_is_the_simulations(cpu: str, tmp_path: Path) -> None:
    compare(list(BLOCKS), cpu, tmp_path)


def compare(blocks: list[str], cpu: str, folder: Path) -> None:
    x, graphs = images(16, seed=3), {block: simulated(model_of(block), find("arm")) for block in blocks}
    device = OnCpu(cpu, folder, graphs, x)
    for block in blocks:
        device.check(block, x)


# ---- A trained network ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
@pytest.mark.parametrize("runtime", [pytest.param("tvm", marks=needs_tvm), "onnxruntime"])
def test_resnet20_answers_on_arm_what_the_simulation_answers(
    runtime: str, cpu: str, zoo: ModuleType, tmp_path: Path
) -> None:
    x = zoo.cifar10("test")[0][:16]
    target = find(f"tvm-{cpu}" if runtime == "tvm" else "arm")
    calibration = zoo.cifar10("train10k")[0][:64]
    result = graphopt.optimize(
        zoo.cifar_resnet(20), x[:1], target=target, calibration=calibration, estimator="minmax", measure=False
    )
    if runtime == "tvm":
        assert torch.equal(on_arm(result.artifact, cpu, x), graphopt.simulate(result.graph, target)(x))
    else:
        OnCpu(cpu, tmp_path, {"resnet20": result.graph}, x).check("resnet20", x)


# ---- Single operators of ONNX Runtime -------------------------------------------------------------------------------


def grid(rng: np.random.Generator, dtype: torch.dtype) -> QuantizationParameters:
    """Drawn at random; powers of two among the scales make ties."""
    low, high = TYPES[dtype]
    scale = 2.0 ** -int(rng.integers(0, 8)) if rng.random() < 0.3 else float(np.float32(2 ** rng.uniform(-10, 4)))
    return QuantizationParameters(scale, int(rng.integers(low, high + 1)), low, high, dtype)


MEANS = torch.nn.AvgPool2d((2, 3), (1, 2))


class Operators:
    """Models of one operator each, and what the kernel in torch answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs, self.expected = folder, {}, {}

    def add(
        self, operator: str, grids: list[QuantizationParameters], expected: Tensor, *inputs: Tensor, **attributes: Any
    ) -> None:
        place = self.folder / f"{operator}{len(self.jobs)}"
        place.mkdir()
        onnx.save(model(operator, grids, *inputs, **attributes), str(place / "model.onnx"))
        self.jobs[place], self.expected[place] = [x.numpy() for x in inputs], expected

    def wrong(self, cpu: str) -> list[str]:
        found = arm(cpu).onnxruntime(self.jobs)
        return [p.name for p, e in self.expected.items() if not torch.equal(torch.from_numpy(found[p]["y"]), e)]


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_every_operator_answers_on_arm_what_its_kernel_answers(cpu: str, tmp_path: Path) -> None:
    rng, operators, apart = np.random.default_rng(0), Operators(tmp_path), 0
    for number in range(24):
        dtype = (torch.int8, torch.uint8)[number % 2]
        low, high = TYPES[dtype]
        a, b, y = found = [grid(rng, dtype) for _ in range(3)]
        p, q = pairs(a, b)
        codes = all_codes(dtype).to(dtype)
        total = add_neon(*found)(p, q)
        apart += not torch.equal(total, add_avx2(*found)(p, q))
        operators.add("QLinearAdd", found, total, p, q)
        if a.scale * b.scale / y.scale * 255**2 < 2**31:
            operators.add("QLinearMul", found, multiply(*found)(p, q), p, q)
        operators.add("QLinearSigmoid", [a, b], sigmoid(a, b)(codes), codes)
        pixels, image = int(rng.integers(1, 401)), torch.from_numpy(rng.integers(low, high + 1, (3, 7, 400))).to(dtype)
        if a.scale / b.scale / pixels < 255:
            image = image[..., :pixels].contiguous()
            expected = global_mean(image, a, b)
            operators.add("QLinearGlobalAveragePool", [a, b], expected, image, channels_last=0)
        image = torch.from_numpy(rng.integers(low, high + 1, (2, 3, 7, 9))).to(dtype)
        mean = AveragePool(a, b, (2, 3), (1, 2), (0, 0), MEANS, include_padding=False)
        operators.add("QLinearAveragePool", [a, b], mean(image), image, kernel_shape=(2, 3), strides=(1, 2))
        share = b._replace(scale=float(np.float32(1 / 255)), zero_point=low)
        rows = torch.from_numpy(rng.integers(low, high + 1, (16, int(rng.integers(2, 301))))).to(dtype)
        operators.add("QLinearSoftmax", [a, share], Softmax(a, share, -1)(rows), rows, axis=-1, opset=18)
    x, y = (
        QuantizationParameters(2.0**-6, 101, -128, 127, torch.int8),
        QuantizationParameters(1.0, -111, -128, 127, torch.int8),
    )
    image = torch.full((1, 3, 277), 5, dtype=torch.int8)  # means of -1.5, rounded to even; to -1 in fixed point
    operators.add(
        "QLinearGlobalAveragePool", [x, y], torch.full((1, 3, 1), -113).to(torch.int8), image, channels_last=0
    )
    assert torch.equal(global_mean(image, x, y), torch.full((1, 3, 1), -113).to(torch.int8))
    assert apart > 6  # else sums in fixed point were not told from those of x86
    assert operators.wrong(cpu) == []

"""GPUs through TVM: OpenCL source run on PoCL against the simulation and torch, CUDA source compiled where nvcc is, errors."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, model_of, simulated
from rewriting import Model
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.backend import Tuning
from graphopt.formats import FLOAT16
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.targets import Target, architecture, find
from graphopt.utils.errors import ArtifactError, InputError

pytest.importorskip("tvm", reason="the TVM backend needs graphopt[tvm]")

from graphopt.backends import tvm as backends_tvm
from graphopt.backends.tvm import lower, schedules
from graphopt.backends.tvm.build import Code, kernels_of
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.machine import Gpu
from graphopt.backends.tvm.schedules import Conv, Epilogue, Pool
from graphopt.backends.tvm.schedules.gpu.leftovers import has_threads
from graphopt.lowering.static_batch import fix_batch

CUDA, OPENCL, ADRENO = find("tvm-cuda"), find("tvm-opencl"), find("adreno")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="compiles CUDA source, but there is no nvcc")
needs_cross = pytest.mark.skipif(
    architecture() != "aarch64" and shutil.which("aarch64-linux-gnu-g++") is None,
    reason="links for 64-bit ARM, which needs g++-aarch64-linux-gnu",
)


@pytest.fixture(scope="session")
def opencl() -> ModuleType:
    """`opencl_running`; skips where there is no OpenCL device."""
    if importlib.util.find_spec("pyopencl") is None:
        pytest.skip("runs OpenCL source, which needs pyopencl and a device: pip install 'graphopt[opencl]'")
    import opencl_running
    import pyopencl

    try:
        opencl_running.queue()
    except (pyopencl.Error, IndexError) as error:
        pytest.skip(f"runs OpenCL source, but there is no OpenCL device ({error})")
    return opencl_running


# ---- Kernels --------------------------------------------------------------------------------------------------------

SHAPES = {
    "whole tiles": Conv((1, 8, 8, 16), 64, (3, 3), padding=((1, 1), (1, 1))),
    "ragged": Conv((2, 7, 5, 3), 13, (3, 2), (2, 1), ((2, 0), (0, 1)), (1, 2)),
    "groups": Conv((1, 6, 6, 12), 9, (3, 3), padding=((1, 1), (1, 1)), groups=3),
    "linear": Conv((1, 1, 5, 70), 33),
    "depthwise": Conv((2, 7, 6, 10), 10, (3, 3), (2, 2), ((1, 1), (1, 1)), groups=10),
}


def exact_conv(spec: Conv, x: Any, weight: Any) -> Any:
    """By torch, in float64, with the channels innermost."""
    (top, bottom), (left, right) = spec.padding
    data = torch.from_numpy(x).double().permute(0, 3, 1, 2) - spec.zero_point
    padded = F.pad(data, (left, right, top, bottom))
    y = F.conv2d(padded, torch.from_numpy(weight).double(), None, spec.stride, 0, spec.dilation, spec.groups)
    return y.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("data", "dot"), [("int8", "none"), ("uint8", "dp4a")])
def test_sums_of_codes_are_exact(opencl: ModuleType, shape: str, data: str, dot: Any) -> None:
    rng = np.random.default_rng(0)
    spec = replace(SHAPES[shape], data=data, zero_point=5, epilogue=Epilogue())
    info = np.iinfo(data)
    x = rng.integers(info.min, info.max, spec.shape, data, endpoint=True)
    weight = rng.integers(-127, 127, spec.weight_shape, "int8", endpoint=True)
    bias = rng.integers(-1000, 1000, spec.channels).astype(np.int32)
    kernel = schedules.conv(spec, Gpu("opencl", dot=dot))
    y = opencl.run_kernel(kernel, x, *kernel.constants(weight, bias, np.ones(1, np.float32)))
    np.testing.assert_array_equal(y, exact_conv(spec, x, weight) + bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_halves_are_those_of_torch(opencl: ModuleType, shape: str) -> None:
    rng = np.random.default_rng(0)
    data = "float16"
    spec = replace(SHAPES[shape], data=data, epilogue=Epilogue(residual=data, clamp=(0.0, 6.0)))
    x, residual = (rng.standard_normal(s).astype(data) for s in (spec.shape, spec.result_shape))
    weight = (rng.standard_normal(spec.weight_shape) / 4).astype(data)
    bias = rng.standard_normal(spec.channels).astype(np.float32)
    kernel = schedules.conv(spec, Gpu("opencl"))
    y = opencl.run_kernel(kernel, x, residual, *kernel.constants(weight, bias))
    assert y.dtype == data
    expected = (exact_conv(spec, x, weight) + bias + residual).clip(0, 6)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_a_mean_of_halves_is_summed_in_float32(opencl: ModuleType) -> None:
    x = np.full((1, 64, 64, 3), 1000, np.float16)  # in float16, the sum would be infinite
    kernel = schedules.pool(Pool("average", x.shape, (64, 64), (64, 64), data="float16"), Gpu("opencl"))
    np.testing.assert_array_equal(opencl.run_kernel(kernel, x), np.full((1, 1, 1, 3), 1000, np.float16))


# ---- Networks, as OpenCL --------------------------------------------------------------------------------------------


def test_integers_are_those_of_the_simulation_in_every_bit(opencl: ModuleType) -> None:
    graph, x = simulated(model_of("concat"), OPENCL), images(3, seed=3) * 1.5
    answers = opencl.OpenCL(fix_batch(graph, 3), OPENCL)(x)
    assert torch.equal(answers, graphopt.simulate(graph, OPENCL)(x))


def test_halves_are_those_of_the_simulated_graph(opencl: ModuleType) -> None:
    graph, x = simulated(model_of("residual"), ADRENO), images(3, seed=3) * 1.5
    with torch.no_grad():
        answers, expected = opencl.OpenCL(fix_batch(graph, 3), ADRENO)(x), graph(x)
    assert float((answers - expected).abs().max()) < 2e-3 * float(
        expected.abs().max()
    )  # a value may round the other way


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("target", [OPENCL, ADRENO], ids=["int8", "float16"])
def test_every_block_runs_as_opencl(opencl: ModuleType, block: str, target: Target) -> None:
    graph, x = simulated(model_of(block), target), images(3, seed=3) * 1.5
    expected = (graph if target is ADRENO else graphopt.simulate(graph, target))(x).detach()
    answers = opencl.OpenCL(fix_batch(graph, 3), target)(x)
    assert float((answers - expected).abs().max()) <= (2e-3 if target is ADRENO else 0) * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("target", "bound"), [(OPENCL, 0.0), (ADRENO, 2e-3)], ids=["int8", "float16"])
def test_resnet20_runs_as_opencl(opencl: ModuleType, zoo: ModuleType, target: Target, bound: float) -> None:
    x = zoo.cifar10("test")[0][:16]
    calibration = zoo.cifar10("train10k")[0][:128]
    result = graphopt.optimize(zoo.cifar_resnet(20), x[:1], target=target, calibration=calibration, measure=False)
    expected = (result.graph if target is ADRENO else graphopt.simulate(result.graph, target))(x).detach()
    answers = opencl.OpenCL(fix_batch(result.graph, 16), target)(x)
    assert float((answers - expected).abs().max()) <= bound * float(expected.abs().max())
    assert torch.equal(answers.argmax(1), expected.argmax(1))


# ---- float16 --------------------------------------------------------------------------------------------------------

HALF = find("tvm-x86").replace(weights=FLOAT16, activations=FLOAT16)


@pytest.mark.thorough
@pytest.mark.skipif(architecture() != "x86_64", reason="compiles for the x86-64 machine at hand")
def test_a_cpu_computes_halves_too() -> None:
    graph, x = simulated(model_of("concat"), HALF), images(4, seed=3) * 1.5
    with torch.no_grad():
        answers, expected = lower(graph, HALF)(x), graph(x)
    assert float((answers - expected).abs().max()) < 2e-3 * float(expected.abs().max())


@pytest.mark.thorough
def test_values_and_weights_are_float16_from_layer_to_layer() -> None:
    graph = fix_batch(simulated(model_of("residual"), ADRENO), 1)
    module = compiled(graph, Code.of(ADRENO.runtime)).module["main"]
    assert str(module).count("R.call_tir") == 5  # four layers, the sum and its activation within one, and a mean
    assert str(module).count('R.astype(inputs_0, dtype="float16")') == 1
    assert str(module).count("R.astype") == 1
    assert {str(c.value.dtype) for c in constants(module) if len(c.value.shape) > 1} == {"float16"}


def constants(function: Any) -> list[Any]:
    calls = [b.value for block in function.body.blocks for b in block.bindings if hasattr(b.value, "op")]
    operands = [a for call in calls if call.op.name == "relax.call_tir" for a in call.args[1].fields]
    return [a for a in operands if hasattr(a, "value")]


def test_weights_have_no_subnormals_where_the_gpu_has_none() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)).eval()
    with torch.no_grad():
        model[0].weight[0] = 3e-5  # under 2^-14, the least normal number
    kept, flushed = (backends_tvm.deploy(simulated(model, t)) for t in (HALF, ADRENO))
    stored = [halves(graph)[0] for graph in (kept, flushed)]
    assert stored[0].dtype == stored[1].dtype == torch.float16
    assert float(stored[0][0].min()) == pytest.approx(3e-5, rel=1e-2)
    assert float(stored[1][0].abs().max()) == 0


def halves(graph: Graph) -> list[Tensor]:
    return [t for n in graph.nodes if graph.is_constant(n) and (t := graph.tensor(n)).dtype == torch.float16]


@pytest.mark.thorough
def test_halves_stay_where_the_runtime_has_none() -> None:
    assert halves(deploy(simulated(model_of("plain"), HALF))) == []


@needs_cross
def test_optimize_reports_what_computes_in_float16(tmp_path: Path) -> None:
    data = images(8)
    result = graphopt.optimize(model_of("residual"), data[:1], target="adreno", calibration=data)
    assert [step.name for step in result.report.steps if step.changes][-1] == "Quantize"
    assert result.report.float16_macs == 1
    assert result.report.results()["float16"] == "100.0% of MACs"
    assert "integer" not in result.report.results()
    assert result.report.agreement == 1
    assert (result.report.steps[-1].sqnr_db or 0) > 50
    folder = result.artifact.save(tmp_path / "deployed")
    assert sorted(p.name for p in folder.iterdir()) == ["kernels.cl", "manifest.json", "model.so"]
    with pytest.raises(ArtifactError, match="copy the folder to a machine with such a GPU"):
        graphopt.load(folder)(data[:1])


@needs_cross
def test_an_arm_cpu_with_float16_gets_code_that_uses_it() -> None:
    target = find("tvm-cortex-a76-fp16")
    artifact = lower(simulated(model_of("plain"), target), target)
    assert "fullfp16" in artifact.code["required"]


# ---- CUDA -----------------------------------------------------------------------------------------------------------


def cuda(graph: Graph) -> tuple[Any, str]:
    artifact = lower(graph, CUDA)
    return artifact, (artifact.folder / "kernels.cu").read_text()


@pytest.mark.thorough
@pytest.mark.skipif(architecture() != "x86_64", reason="links for x86-64")
def test_layers_of_codes_are_cuda_with_dot_products_in_shared_memory(tmp_path: Path) -> None:
    artifact, source = cuda(simulated(model_of("inverted residual"), CUDA))
    assert "__shared__" in source
    assert "__dp4a(" in source
    assert "__fdiv_rn(" in source  # a fast division would round codes the wrong way
    assert "fma" not in source.replace("__fmaf_rn", "")
    folder = artifact.save(tmp_path / "deployed")
    with pytest.raises(ArtifactError, match="no NVIDIA GPU that TVM can use"):
        graphopt.load(folder)(images(1))


@pytest.mark.thorough
@needs_nvcc
@pytest.mark.skipif(architecture() != "x86_64", reason="links for x86-64")
@pytest.mark.parametrize("target", [CUDA, CUDA.replace(weights=FLOAT16, activations=FLOAT16)], ids=["int8", "float16"])
def test_nvcc_compiles_the_source(tmp_path: Path, target: Target) -> None:
    artifact = lower(simulated(model_of("squeeze-excite"), target), target)
    command = ["nvcc", "-ptx", "-arch=sm_75", str(artifact.folder / "kernels.cu"), "-o", str(tmp_path / "kernels.ptx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "kernels.ptx").read_text()
    assert text.count(".entry") == (artifact.folder / "kernels.cu").read_text().count("void __launch_bounds__") // 2
    assert ("dp4a" in text) == (target is CUDA)


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    y = F.layer_norm(F.softmax(q @ k.transpose(1, 2) / 2, -1) @ v, (4,))
    return m.head(F.gelu(y).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", [CUDA, OPENCL], ids=["cuda", "opencl"])
def test_operators_of_tvm_run_on_threads_as_well(target: Target) -> None:
    model, x = Model(attention, qkv=nn.Linear(3, 12), head=nn.Linear(4, 2)).eval(), torch.randn(2, 3, 4, 4)
    code = Code.of(target.runtime)
    module = kernels_of(compiled(Graph.capture(model, (x,), dynamic_batch=False), code).module, code)
    functions = [f for _, f in module.functions_items() if type(f).__name__ == "PrimFunc"]
    assert len(functions) > 8
    assert all(map(has_threads, functions))


# ---- Errors ---------------------------------------------------------------------------------------------------------


def small() -> Graph:
    return Graph.capture(nn.Sequential(conv(3, 4), nn.ReLU()).eval(), (images(1),))


def test_a_gpu_that_cuda_does_not_name_so_is_refused() -> None:
    with pytest.raises(InputError, match="cpu='orin' is no GPU of CUDA; give its compute capability"):
        lower(small(), CUDA.replace(cpu="orin"))


def test_tuning_is_for_cpus() -> None:
    with pytest.raises(InputError, match="'tvm-cuda' computes with cuda: leave it out"):
        lower(small(), CUDA, tuning=Tuning(1))


@pytest.mark.skipif(architecture() != "x86_64", reason="links for x86-64")
def test_a_device_over_the_network_is_for_cpus() -> None:
    with pytest.raises(InputError, match="copy the folder to the device and load it there"):
        lower(small(), CUDA).on("rpc://localhost:1")

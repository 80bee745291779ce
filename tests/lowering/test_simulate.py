"""The integer simulation against ONNX Runtime, code by code."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import onnx
import pytest
import torch
from blocks import BLOCKS, conv, images, lowered, model_of, simulated, target_of
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES
from onnx import numpy_helper
from simulated import HERE, assert_equal, quantized, quantizers, simulation_of
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import OnnxRuntimeArtifact, audit, lower
from graphopt.demo.train import load, train
from graphopt.formats import Format
from graphopt.targets import architecture

TARGETS = ["x86", "arm"]

pytestmark = pytest.mark.skipif(
    architecture() != "x86_64", reason="aarch64 kernels were never compared with the runtime"
)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_bit_identical(block: str, target: str) -> None:
    _, graph, artifact = lowered(block, target)
    assert_equal(simulation_of(graph, target), artifact, images(64, seed=3) * 1.5)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_is_bit_identical(case: str, target: str) -> None:
    make, shape, kernel, operator = CASES[case]
    graph = quantized(make(), target, torch.randn(16, *shape))
    artifact = lower(graph, target_of(target))
    assert operator in audit(artifact).operators
    found = assert_equal(simulation_of(graph, target), artifact, torch.randn(32, *shape) * 1.5)
    assert kernel in {line.kernel for line in found}


@pytest.mark.thorough
def test_an_operand_that_is_repeated_over_an_image_comes_second_as_in_the_runtime() -> None:
    make, shape, *_ = CASES["a sum that broadcasts its first operand"]
    simulation = simulation_of(quantized(make(), "x86", torch.randn(4, *shape)), "x86")
    (total,) = [n for n in simulation._graph.calls() if getattr(n.target, "__name__", "") == "add"]
    assert [tuple(a.meta["val"].shape[2:]) for a in total.args] == [(8, 8), (1, 1)]  # type: ignore[union-attr]


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
def test_weights_with_one_scale_are_bit_identical(target: str) -> None:
    chosen = target_of(target)
    chosen = chosen.replace(weights=replace(chosen.formats.weights, per_channel=False))
    graph = simulated(model_of("plain"), chosen)
    assert_equal(graphopt.simulate(graph, chosen, machine=HERE), lower(graph, chosen), images(64, seed=3))


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
def test_codes_of_fewer_bits_are_bit_identical(target: str) -> None:
    signed = target_of(target).formats.activations.signed
    graph = quantized(model_of("plain"), target, images(16), activations=Format(4, signed=signed, symmetric=False))
    found = assert_equal(simulation_of(graph, target), lower(graph, target_of(target)), images(64, seed=3))
    assert "conv" in {line.kernel for line in found}


@pytest.mark.thorough
def test_layers_between_codes_of_16_bits_are_sums_of_floats_as_in_the_runtime() -> None:
    """There the order of addition shows: a few codes differ, by a few of 65,536 steps."""
    graph = quantized(model_of("plain"), "x86", images(16), activations=Format(16, signed=False, symmetric=False))
    artifact = lower(graph, target_of("x86"))
    assert audit(artifact).share == 0
    found = simulation_of(graph, "x86").mismatches(artifact, images(64, seed=3))
    assert len(found) == quantizers(artifact)
    assert {line.kernel for line in found} == {"quantize"}
    assert max(line.largest for line in found) <= 1
    assert sum(line.differing for line in found) <= 1e-2 * sum(line.total for line in found)


@pytest.mark.thorough
def test_behind_a_layer_left_in_float_hardly_a_code_differs_and_by_one_step_at_most() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    graph = quantized(model, "x86", images(16), formats={"2": None})
    found = simulation_of(graph, "x86").mismatches(lower(graph, target_of("x86")), images(64, seed=3))
    assert [line.kernel for line in found] == ["quantize", "conv", "quantize", "conv"]
    assert [line.differing for line in found if line.kernel == "conv"] == [0, 0]
    assert found[2].largest <= 1
    assert found[2].differing <= 1e-4 * found[2].total


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@given(
    channels=st.integers(1, 9), groups=st.integers(1, 3), kernel=st.integers(1, 5), stride=st.integers(1, 3),
    dilation=st.integers(1, 2), bias=st.booleans(), size=st.integers(10, 14), target=st.sampled_from(TARGETS),
    gain=st.floats(0.01, 100), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_convolution_is_bit_identical(
    channels: int,
    groups: int,
    kernel: int,
    stride: int,
    dilation: int,
    bias: bool,
    size: int,
    target: str,
    gain: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(channels * groups, 2 * groups, kernel, stride, kernel // 2, dilation, groups, bias),
        nn.ReLU(),
        conv(2 * groups, 3),
    )
    x = torch.randn(8, channels * groups, size, size) * gain
    graph = simulated(model, target_of(target), x)
    assert_equal(simulation_of(graph, target), lower(graph, target_of(target)), x.flip(0) * 1.2)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
def test_the_demo_network_answers_bit_for_bit_what_its_artifact_answers(target: str) -> None:
    digits = load()
    result = graphopt.optimize(
        train(digits, epochs=1),
        digits.train_images[:1],
        target=target_of(target),
        calibration=digits.train_images[:256],
        measure=False,
    )
    simulation = simulation_of(result.graph, target)
    assert torch.equal(simulation(digits.test_images), result.artifact(digits.test_images))
    with torch.no_grad():
        assert not torch.equal(
            result.graph(digits.test_images), result.artifact(digits.test_images)
        )  # else it proves little


def altered(artifact: OnnxRuntimeArtifact, weight: str) -> None:
    """Negate a layer's weights in the file."""
    path = str(artifact.folder / "model.onnx")
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == weight:
            initializer.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(initializer), weight))
    onnx.save(model, path)


@pytest.mark.thorough
def test_a_kernel_that_computes_something_else_is_named_alone() -> None:
    _, graph, _ = lowered("residual", "x86")
    artifact, x = lower(graph, target_of("x86")), images(8)
    altered(artifact, "first.0.weight_codes")
    simulation = simulation_of(graph, "x86")
    (line,) = [line for line in simulation.mismatches(artifact, x) if line.differing]
    assert (line.site, line.kernel) == ("first.0", "conv")
    assert line.total == 8 * 8 * 8 * 8
    assert 0 < line.differing <= line.total
    assert line.largest > 1
    assert str(line) == (
        f"first.0 (conv, {line.name}): {line.differing} of {line.total} differ, by {line.largest} at most"
    )
    free = simulation.mismatches(artifact, x, free_running=True)
    spread = [line.kernel for line in free if line.differing]
    assert spread[:3] == ["conv", "conv", "add"]
    assert [line.name for line in free] == list(simulation.codes(x))


@pytest.mark.thorough
def test_codes_are_integers_by_the_names_of_the_artifacts_values() -> None:
    _, graph, artifact = lowered("plain", "arm")
    codes = simulation_of(graph, "arm").codes(images(2))
    nodes = onnx.load(str(artifact.folder / "model.onnx")).graph.node
    assert {node.output[0] for node in nodes if node.op_type == "QuantizeLinear"} == set(codes)
    assert {value.dtype for value in codes.values()} == {torch.int8}


def test_only_values_that_are_still_to_be_read_are_kept() -> None:
    model = nn.Sequential(*[nn.Sequential(conv(3, 3), nn.ReLU()) for _ in range(8)])
    simulation = simulation_of(simulated(model, target_of("x86")), "x86")
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(node: Any, name: str, codes: Tensor) -> Tensor:
        seen.append(weakref.ref(codes))
        alive.append(sum(ref() is not None for ref in seen))
        return codes

    simulation._run((images(2),), {}, watch)
    assert len(alive) == 9
    assert max(alive) <= 2

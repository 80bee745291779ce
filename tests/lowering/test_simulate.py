"""The integer simulation against ONNX Runtime, code by code."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, lowered, model_of, simulated, target_of
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES
from onnx import numpy_helper
from rewriting import Model, apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import Mismatch, OnnxRuntimeArtifact, Simulation, audit, lower
from graphopt.demo.train import load, train
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.kernels import LayerKernel
from graphopt.lowering.integers.machines import MACHINES
from graphopt.passes.quantization import Quantize
from graphopt.targets import architecture, machine_here
from graphopt.utils.errors import InputError

HERE = machine_here()
TARGETS = ["x86", "arm"]

pytestmark = pytest.mark.skipif(
    architecture() != "x86_64", reason="aarch64 kernels were never compared with the runtime"
)


def simulation_of(graph: Graph, target: str) -> Simulation:
    return graphopt.simulate(graph, target_of(target), machine=HERE)


def quantized(model: nn.Module, target: str, *inputs: Tensor, **options: Any) -> Graph:
    """Captured and quantized as it is, without what the recipe does before and behind."""
    graph = capture(model, *inputs)
    apply(Quantize(target_of(target), [[*inputs]], estimator="minmax", **options), graph)
    return graph


def quantizers(artifact: OnnxRuntimeArtifact) -> int:
    nodes = onnx.load(str(artifact.folder / "model.onnx")).graph.node
    return sum(node.op_type == "QuantizeLinear" for node in nodes)


def assert_equal(simulation: Simulation, artifact: OnnxRuntimeArtifact, *inputs: Tensor) -> list[Mismatch]:
    """Every code of every kernel by itself, and the answer of all together."""
    found = simulation.mismatches(artifact, *inputs)
    assert [str(line) for line in found if line.differing] == []
    assert len(found) >= quantizers(artifact)
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(simulation(*inputs)),
        torch.utils._pytree.tree_leaves(artifact(*inputs)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    return found


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


# ---- Finding the culprit --------------------------------------------------------------------------------------------


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


# ---- The call itself ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_inputs_and_outputs_are_nested_as_the_models() -> None:
    def body(m: Any, image: Tensor, mask: Tensor) -> dict[str, Any]:
        both = F.relu(m.a(image) + m.b(mask))
        return {"sum": both, "parts": (both.mean((2, 3)), [m.b(mask), image])}

    class Two(Model):
        def forward(self, image: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
            return body(self, image, mask)

    one, other = images(4), images(4, seed=2)
    graph = simulated(Two(None, a=conv(3, 4), b=conv(3, 4)), target_of("x86"), one, other)  # type: ignore[arg-type]
    simulation, artifact = simulation_of(graph, "x86"), lower(graph, target_of("x86"))
    found = simulation(mask=other, image=one)
    assert isinstance(found["parts"], tuple)
    assert isinstance(found["parts"][1], list)
    assert torch.equal(found["parts"][1][1], one)
    assert_equal(simulation, artifact, one, other)


@pytest.mark.thorough
@pytest.mark.parametrize("made", [lambda y: y > 0, lambda y: (y > 0).to(torch.int64), lambda y: y[:, :0]])
def test_outputs_that_are_no_numbers_are_compared_too(made: Callable[[Tensor], Tensor]) -> None:
    def body(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.b(m.a(x).relu())
        return y, made(y)

    graph = quantized(Model(body, a=conv(3, 4), b=conv(4, 4)), "x86", images(4))
    assert_equal(simulation_of(graph, "x86"), lower(graph, target_of("x86")), images(4))


@pytest.mark.thorough
def test_the_graph_is_left_as_it_is() -> None:
    graph = lowered("plain", "x86").graph
    text = str(graph)
    simulation_of(graph, "x86")(images(2))
    assert str(graph) == text


@pytest.mark.thorough
def test_torchs_fast_matrix_products_do_not_show() -> None:
    _, graph, artifact = lowered("plain", "x86")
    before, x = torch.get_float32_matmul_precision(), images(16)
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(simulation_of(graph, "x86")(x), artifact(x))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_input_that_does_not_fit_is_named() -> None:
    simulation = simulation_of(lowered("plain", "x86").graph, "x86")
    with pytest.raises(InputError, match="must be"):
        simulation(torch.randn(2, 1, 8, 8))


def test_a_float_graph_has_no_integers() -> None:
    with pytest.raises(ValueError, match="the graph is not quantized"):
        graphopt.simulate(capture(model_of("plain"), images(2)), "x86")


def test_an_unknown_machine_is_named_with_those_known() -> None:
    with pytest.raises(InputError, match=r"machine 'riscv64'; known: aarch64, avx2, x86_64"):
        graphopt.simulate(lowered("plain", "x86").graph, "x86", machine="riscv64")


@pytest.mark.thorough
def test_the_target_decides_whose_kernels_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph, _ = lowered("residual", "arm")
    arm, x = MACHINES["aarch64"], images(8)
    add = arm.add
    before, here = graphopt.simulate(graph, "arm")(x), simulation_of(graph, "arm")(x)
    monkeypatch.setitem(
        MACHINES, "aarch64", arm._replace(add=lambda a, b, y: add(a, b, y._replace(zero_point=y.zero_point + 1)))
    )
    assert graphopt.simulate(graph, "arm").machine == "aarch64"
    assert not torch.equal(graphopt.simulate(graph, "arm")(x), before)
    assert torch.equal(simulation_of(graph, "arm")(x), here)


@pytest.mark.thorough
def test_only_this_machines_kernels_can_be_compared() -> None:
    _, graph, artifact = lowered("residual", "arm")
    with pytest.raises(InputError, match=rf"this machine is {HERE}, the simulation computes as aarch64"):
        graphopt.simulate(graph, "arm").mismatches(artifact, images(2))


@pytest.mark.thorough
def test_an_artifact_of_another_graph_is_refused() -> None:
    with pytest.raises(InputError, match="the artifact is of another graph"):
        simulation_of(lowered("plain", "x86").graph, "x86").mismatches(lowered("concat", "x86").artifact, images(2))


class Padded(nn.Module):
    """Pads that lowering moves into the convolutions behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(F.pad(x, (0, 1, 0, 1))))
        return torch.relu(self.second(F.pad(x, (1, 1, 2, 0))))


@pytest.mark.thorough
@pytest.mark.skipif(architecture() != "x86_64", reason="vendors' files are compared in the arithmetic of x86")
def test_values_in_front_of_a_padding_that_moved_are_compared() -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    done = graphopt.optimize(Padded().eval(), x, target="hexagon", calibration=[x], measure=False)
    found = graphopt.simulate(done.graph, "hexagon", machine=HERE).mismatches(done.artifact, x)
    assert found[0].total == x.numel()
    assert not any(line.differing for line in found)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 1)), torch.randn(4, 3, 9, 9)),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 6)),
    "rows": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 5, 6)),
    "without biases": (lambda: nn.Sequential(nn.Linear(6, 8, False), nn.Linear(8, 3, False)), torch.randn(8, 5, 6)),
}


@pytest.mark.parametrize("weights", [Format(7, per_channel=True), Format(8, signed=False, symmetric=False)], ids="su")
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_layers_are_simulated_in_integer_where_the_runtime_computes_them_so(
    layers: str, signed: bool, weights: Format
) -> None:
    """All but those of signed values and unsigned weights, which ONNX Runtime leaves in float."""
    make, x = LAYERS[layers]
    target = target_of("arm").replace(weights=weights, activations=Format(8, signed=signed, symmetric=False))
    graph = capture(make().eval(), x)
    apply(Quantize(target, [[x]], estimator="minmax"), graph)
    artifact = lower(graph, target)
    simulation = graphopt.simulate(graph, target, machine=HERE)
    kernels = [n for n in simulation._graph.calls() if isinstance(getattr(n.target, "function", None), LayerKernel)]
    assert len(kernels) == len(audit(artifact).integer) == (0 if signed and not weights.signed else 2)
    assert not [str(line) for line in simulation.mismatches(artifact, x) if line.differing]

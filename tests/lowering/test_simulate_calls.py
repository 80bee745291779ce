"""Calls of the integer simulation: nested, of other targets, and those that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images, lowered, model_of, simulated, target_of
from rewriting import Model, apply, capture
from simulated import HERE, assert_equal, quantized, simulation_of
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import audit, lower
from graphopt.formats import Format
from graphopt.lowering.integers.kernels import LayerKernel
from graphopt.lowering.integers.machines import MACHINES
from graphopt.passes.quantization import Quantize
from graphopt.targets import architecture
from graphopt.utils.errors import InputError

pytestmark = pytest.mark.skipif(
    architecture() != "x86_64", reason="aarch64 kernels were never compared with the runtime"
)


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


@pytest.mark.thorough
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

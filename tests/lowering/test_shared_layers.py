"""Layers that are called more than once: all of their work is counted, and what is merged is simulated as it is merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import audit, lower
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import find, machine_here

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Shared(nn.Module):
    """One layer, or two with equal weights, on two inputs."""

    def __init__(self, layer: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__()
        self.head = layer
        self.second = layer if other is None else other

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(a), self.second(b)


class Twice(nn.Module):
    """The same computation twice, on two grids."""

    def __init__(self, between: Any = None, channels: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between or (lambda y: y)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.between(self.head(x))), self.between(self.head(x))


def conv(outputs: int = 8, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, outputs, 3, padding=1, **options)


def optimized(model: nn.Module, inputs: tuple[Tensor, ...], target: str = "x86", **options: Any) -> Any:
    return graphopt.optimize(model.eval(), inputs, target=target, calibration=[inputs], measure=False, **options)


def answers_as_simulated(result: Any, inputs: tuple[Tensor, ...], target: str) -> bool:
    machine = None if target.startswith("tvm") else machine_here()
    simulated = graphopt.simulate(result.graph, target, machine=machine)(*inputs)
    return all(torch.equal(a, b) for a, b in zip(result.artifact(*inputs), simulated, strict=True))


SIZES = {
    "one size": X * 0.7,
    "a smaller image": X[..., ::4, ::4].contiguous(),
    "an odd width, which reads no pairs": X[..., :15].contiguous(),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: conv(),
        lambda: conv(64, bias=False),  # more than a thousand weights
        lambda: nn.Conv2d(3, 8, 7, stride=2, padding=3),
    ],
    ids=["few weights", "many weights", "a wide kernel"],
)
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_all_work_of_a_layer_that_is_called_twice_is_counted(target: str, layer: Any, size: str) -> None:
    inputs = (X, SIZES[size])
    result = optimized(Shared(layer()), inputs, target)
    assert result.report.integer_macs == 1.0
    assert answers_as_simulated(result, inputs, target)


@pytest.mark.thorough
def test_each_of_two_layers_with_equal_weights_is_known_by_its_name() -> None:
    result = optimized(Shared(conv(), conv()), (X, X * 0.7))
    assert result.report.integer_macs == 1.0
    assert sorted(audit(result.artifact).integer) == ["head", "second"]


@pytest.mark.thorough
def test_what_a_layer_does_in_float_is_no_work_in_integer() -> None:
    """One of two calls of a layer on equal weights stays float: half of the work."""
    result = optimized(Shared(conv(), conv()), (X, X * 0.7), formats={"second": None})
    assert result.report.integer_macs == 0.5
    found = audit(result.artifact)
    assert found.integer == ["head"]
    assert [(operator.site, operator.macs) for operator in found.floating] == [("second", found.total_macs // 2)]


SAME: dict[str, Any] = {
    "a convolution": None,
    "and a pool": nn.MaxPool2d(2),
    "and a sum": lambda y: y + y.flip(-1),
    "and a mean": nn.AvgPool2d(4),
}


@pytest.mark.parametrize("between", SAME)
@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86"])
def test_equal_calls_on_several_grids_answer_as_simulated(target: str, between: str) -> None:
    torch.manual_seed(0)
    model, passes = Twice(SAME[between]), lambda chosen, data: [Quantize(chosen, data)]
    result = optimized(model, (X,), target, passes=passes)
    assert answers_as_simulated(result, (X,), target)


@pytest.mark.thorough
@pytest.mark.parametrize("between", SAME)
@pytest.mark.parametrize("target", ["x86", "tvm-x86"])
def test_equal_calls_are_computed_once_and_in_integer_where_the_graph_was_cleaned_first(
    target: str, between: str
) -> None:
    torch.manual_seed(0)
    result = optimized(Twice(SAME[between]), (X,), target)
    assert result.report.integer_macs == 1.0
    assert result.report.steps[-1].macs * 2 == result.report.original.macs
    assert answers_as_simulated(result, (X,), target)


@pytest.mark.thorough
def test_one_value_that_is_returned_twice_comes_twice() -> None:
    result = optimized(Shared(conv()), (X, X))
    first, second = result.artifact(X, X * 2)
    assert not torch.equal(first, second)  # two inputs

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = conv()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(x), self.head(x)

    result = optimized(Same(), (X,))
    first, second = result.artifact(X)
    assert torch.equal(first, second)
    assert answers_as_simulated(result, (X,), "x86")


@pytest.mark.parametrize("target", [find("x86"), find("hexagon")], ids=["x86", "hexagon"])
def test_a_float_graph_with_equal_calls_lowers_to_what_it_answers(target: Any) -> None:
    torch.manual_seed(0)
    graph = Graph.capture(Twice().eval(), (X,))
    for found, wanted in zip(lower(graph, target)(X), graph(X), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

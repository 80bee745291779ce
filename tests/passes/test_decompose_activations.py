"""Hard-swish and SiLU written as the products they are."""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, capture, check, names
from torch import nn

from graphopt.passes.cleanup.decompose_activations import DecomposeActivations


def test_hard_swish_reads_as_a_product() -> None:
    graph = check(nn.Hardswish(), torch.linspace(-5, 5, 24).reshape(2, 12), by=DecomposeActivations(), changes=1)
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 12])
          %0 = hardsigmoid(input_1) : f32[N, 12]  # hardsigmoid_default
          %1 = mul(input_1, %0) : f32[N, 12]  # mul_tensor
          return %1""")


def test_silu_reads_as_a_product() -> None:
    graph = check(nn.SiLU(), torch.linspace(-5, 5, 24).reshape(2, 12), by=DecomposeActivations(), changes=1)
    assert names(graph) == ["sigmoid", "mul"]


def test_only_the_named_activations_are_written_out() -> None:
    model = nn.Sequential(nn.Hardswish(), nn.SiLU())
    graph = check(model, torch.randn(2, 12), by=DecomposeActivations(frozenset({"silu"})), changes=1)
    assert names(graph) == ["hardswish", "sigmoid", "mul"]


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Sigmoid(), nn.Hardsigmoid(), nn.ReLU6(), nn.Mish()])
def test_other_activations_stay(activation: nn.Module) -> None:
    check(activation, torch.randn(2, 12), by=DecomposeActivations(), changes=0)


@pytest.mark.parametrize("scalar", [2, 0.5, -3])
def test_a_scalar_operand_becomes_a_constant_of_the_values_type(scalar: float) -> None:
    graph = check(Model(lambda m, x: x * scalar + scalar), torch.randn(2, 4), by=DecomposeActivations(), changes=2)
    assert [str(c.dtype) for c in graph.state_dict().values()] == ["torch.float32"] * 2


def test_double_precision_stays_double() -> None:
    graph = capture(Model(lambda m, x: F.silu(x) * 2), torch.randn(2, 4, dtype=torch.float64))
    DecomposeActivations()(graph)
    graph.refresh()
    assert graph.outputs[0].meta["val"].dtype == torch.float64


def test_integer_arithmetic_stays() -> None:
    check(Model(lambda m, x: x * 2 + 1), torch.arange(8).reshape(2, 4), by=DecomposeActivations(), changes=0)


def test_a_scaled_sum_keeps_its_factor() -> None:
    check(Model(lambda m, x: torch.add(x, 2, alpha=3)), torch.randn(2, 4), by=DecomposeActivations())


def test_an_activation_with_two_readers_is_computed_once() -> None:
    graph = check(Model(lambda m, x: (lambda y: (y.relu(), y.sin()))(F.silu(x))), torch.randn(2, 4),
                  by=DecomposeActivations(), changes=1)  # fmt: skip
    assert names(graph) == ["sigmoid", "mul", "relu", "sin"]

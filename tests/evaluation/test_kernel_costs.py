"""What parts of a network take in integer and in float, and the best split between both."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from rewriting import randomised
from torch import Tensor, nn

import graphopt
from graphopt.artifacts import registry
from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.compiler.recipes import clean
from graphopt.evaluation.kernel_costs import KernelCosts, PartCost
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import run
from graphopt.targets import find
from graphopt.utils.errors import InputError


class Gated(nn.Module):
    """Two convolutions with activations, a gate of pooled pixels, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.SiLU()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.first(x))
        b = self.norm(self.second(a)).relu()
        return a + b * torch.sigmoid(self.gate(b.mean((2, 3), keepdim=True)))


def cleaned(size: int = 8) -> Graph:
    graph = Graph.capture(randomised(Gated()).eval(), torch.randn(2, 3, size, size))
    run(clean(find("x86")), graph)
    return graph


def profile(**ms: float) -> Profile:
    kernels = [KernelTime("kernel", value, name.replace("__", ".")) for name, value in ms.items()]
    return Profile(kernels, sum(ms.values()), 5, "onnxruntime", 1)


def test_a_layer_and_what_reads_it_alone_are_one_part() -> None:
    costs = KernelCosts.of(
        profile(x__quantize=0.5, first=2.0, act__sigmoid=0.25, act__mul=0.25, second=1.0, gate=0.125, copy=9.0),
        profile(act=1.5, norm=0.75, gate=0.0625),
        cleaned(),
    )
    parts = {part.name: part for part in costs.parts}
    assert set(parts) >= {"first", "second", "gate"}
    assert "act" in parts["first"].sites
    assert (parts["first"].integer_ms, parts["first"].float_ms) == (2.5, 1.5)
    assert (parts["gate"].integer_ms, parts["gate"].float_ms) == (0.125, 0.0625)
    assert parts["second"].reads == {"first": 2 // 2 * 8 * 8 * 8}
    assert costs.conversion_ms == pytest.approx(0.5 / (3 * 8 * 8))


def test_parts_of_a_real_network_take_what_its_kernels_take() -> None:
    graph, x = cleaned(64), torch.randn(2, 3, 64, 64)
    target = find("x86")
    integer = graphopt.optimize(Gated().eval(), x, target=target, calibration=[x], measure=False).artifact
    costs = KernelCosts.measure(integer, registry.backend("onnxruntime").lower(graph, target), graph, runs=3)
    by_name = {part.name: part for part in costs.parts}
    for layer in ("first", "second"):
        assert by_name[layer].integer_ms > 0
        assert by_name[layer].float_ms > 0
    assert "first" in str(costs)
    assert costs.to_dict()["parts"][0]["name"] == costs.parts[0].name


@pytest.mark.parametrize("seed", range(20))
def test_no_other_split_takes_less(seed: int) -> None:
    drawn = random.Random(seed)
    parts = []
    for number in range(7):
        earlier = drawn.sample(range(number), min(number, drawn.choice([1, 1, 2])))
        reads = {f"p{other}": drawn.randint(1, 40) for other in earlier}
        parts.append(PartCost(f"p{number}", (f"p{number}",), drawn.uniform(0, 10), drawn.uniform(0, 10), reads))
    costs = KernelCosts(tuple(parts), 0.02)
    chosen = costs.better_in_float()
    best = max(
        costs.gain_ms(subset) for size in range(len(parts) + 1) for subset in itertools.combinations(parts, size)
    )
    assert costs.gain_ms(chosen) == pytest.approx(best)


def test_nothing_goes_to_float_where_conversions_take_more_than_they_save() -> None:
    parts = (
        PartCost("a", ("a",), 1.0, 5.0, {}),
        PartCost("b", ("b",), 2.0, 1.0, {"a": 100}),
        PartCost("c", ("c",), 1.0, 5.0, {"b": 100}),
    )
    assert [p.name for p in KernelCosts(parts, 1e-4).better_in_float()] == ["b"]
    assert KernelCosts(parts, 1e-2).better_in_float() == []


@pytest.mark.thorough
def test_a_runtime_that_tells_no_times_is_refused_by_name() -> None:
    graph = cleaned()
    x = torch.randn(2, 3, 8, 8)
    packed = graphopt.optimize(Gated().eval(), x, target="x86", calibration=[x], measure=False).artifact
    packed._profile = lambda *_: type(packed).__mro__[1]._profile(packed, [], 1)  # type: ignore[attr-defined,method-assign]
    with pytest.raises(InputError, match="says nothing of its kernels"):
        KernelCosts.measure(packed, packed, graph)

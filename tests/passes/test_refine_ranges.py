"""RefineRanges: scales that move together lower the loss, and never at the price of what was held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_once import capture_once
from rewriting import Model
from torch import Tensor, nn

from graphopt.fitting.losses import COMPARISONS
from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.targets import find
from graphopt.utils.errors import InputError

THREE = Format(3, signed=False, symmetric=False)


def network() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.c1(x))
        return m.head(F.relu(y + m.c2(y)).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(body, c1=nn.Conv2d(3, 8, 3), c2=nn.Conv2d(8, 8, 3, padding=1), head=nn.Linear(8, 5)).eval()


def simulated(model: nn.Module, x: Tensor, **options: Any) -> Graph:
    graph = capture_once(model, x[:1])
    Quantize(find("x86"), [[x]], **{"estimator": "minmax", "activations": THREE, **options})(graph)
    graph.refresh()
    return graph


def loss(name: str, graph: Graph, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(COMPARISONS[name](graph(x), model(x)))


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_loss_falls_also_on_samples_never_seen(name: str) -> None:
    model, x, fresh = network(), torch.randn(64, 3, 8, 8), torch.randn(256, 3, 8, 8)
    graph = simulated(model, x)
    before = loss(name, graph, model, fresh)
    assert RefineRanges([[x]], loss=name, evaluations=120)(graph)
    graph.refresh()
    floor = loss(name, capture_once(model, x[:1]), model, fresh)  # cross-entropy does not end at zero
    assert loss(name, graph, model, fresh) - floor < 0.9 * (before - floor)


@pytest.mark.thorough
def test_weights_move_too_where_that_is_wanted() -> None:
    model, x = network(), torch.randn(64, 3, 8, 8)
    graph = simulated(
        model, x, weights=Format(3, per_channel=True), activations=Format(8, signed=False, symmetric=False)
    )
    before = graph.state_dict()
    assert any(
        "c2" in change.site for change in RefineRanges([[x]], weights=True, loss="outputs", evaluations=150)(graph)
    )
    ratio = graph.state_dict()["c2.weight_scale"] / before["c2.weight_scale"]
    assert float(ratio.std()) < 1e-6
    assert float(ratio[0]) != 1.0


@pytest.mark.thorough
def test_biases_follow_and_the_deployed_form_answers_the_same() -> None:
    model, x = network(), torch.randn(64, 3, 8, 8)
    graph = simulated(model, x)
    assert RefineRanges([[x]], weights=True, evaluations=60)(graph)
    graph.refresh()
    for node in graph.calls(torch.ops.aten.conv2d.default):
        scales = [graph.tensor(a.args[1]) for a in node.args[:3]]  # type: ignore[union-attr]
        assert torch.equal(scales[2], scales[0] * scales[1])
    with torch.no_grad():
        torch.testing.assert_close(deploy(graph)(x), graph(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "body", [lambda m, x: m.b(torch.sigmoid(m.a(x))), lambda m, x: m.b(m.a(x) * F.hardsigmoid(m.a(x)))]
)
def test_known_ranges_and_gates_stay(body: Any) -> None:
    model = Model(body, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(32, 3, 6, 6)
    graph = simulated(model, x)
    gates = [q for q in graph.calls(FAKE_QUANTIZE) if "sigmoid" in str(getattr(q.args[0], "target", ""))]
    before = [graph.tensor(q.args[1]).clone() for q in gates]  # type: ignore[arg-type]
    RefineRanges([[x]], loss="outputs", evaluations=60)(graph)
    assert gates
    assert all(torch.equal(graph.tensor(q.args[1]), s) for q, s in zip(gates, before, strict=True))  # type: ignore[arg-type]


def test_powers_of_two_stay() -> None:
    model, x = network(), torch.randn(32, 3, 8, 8)
    graph = simulated(model, x, activations=Format(3, signed=False, symmetric=True, power_of_two=True))
    assert RefineRanges([[x]], evaluations=20)(graph) == []


@pytest.mark.thorough
def test_it_is_deterministic_and_does_its_work_once() -> None:
    model, x = network(), torch.randn(32, 3, 8, 8)
    one, other = simulated(model, x), simulated(model, x)
    options: Any = {"loss": "outputs", "evaluations": 40}
    assert RefineRanges([[x]], **options)(one) == RefineRanges([[x]], **options)(other)
    assert RefineRanges([[x]], **options)(one) == []


def test_what_does_not_fit_is_said() -> None:
    model, x = network(), torch.randn(32, 3, 8, 8)
    with pytest.raises(InputError, match="unknown loss 'accuracy'; known: labels, divergence, outputs"):
        RefineRanges([[x]], loss="accuracy")
    assert RefineRanges([[x]])(capture_once(model, x[:1])) == []
    with pytest.raises(InputError, match="too few to hold some out"):
        RefineRanges([[x[:3]]])(simulated(model, x))
    graph = simulated(model, x)
    CorrectBias([[x]])(graph)
    with pytest.raises(InputError, match="in front of CorrectBias"):
        RefineRanges([[x]])(graph)

"""Bits by layer: what they cost, and how much the network feels them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixed import BATCHES, CHOICES, WEIGHTS, X86, mixed, residual
from rewriting import capture, randomised
from torch import Tensor, nn

from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.mixed.cost import average_bits, bit_operations, size
from graphopt.passes.quantization.mixed.hessian import traces
from graphopt.passes.quantization.mixed.sensitivity import Divergence
from graphopt.passes.quantization.mixed.space import Space
from graphopt.passes.quantization.mixed.trials import Network, Trial, Weights


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(randomised(residual()), BATCHES[0][0][:2])


# ---- Costs ----------------------------------------------------------------------------------------------------------


def test_size_counts_the_stored_bits(graph: Graph) -> None:
    space = Space.of(graph, X86, [8, 4], [], {"stem": 8, "head": None})
    eights, fours = space.assignment(8, None), space.assignment(4, None)
    assert size(space, 1.0)(eights) == sum(WEIGHTS.values()) + 3 * WEIGHTS["head"]
    assert size(space, 1.0)(fours) == WEIGHTS["stem"] + (WEIGHTS["first"] + WEIGHTS["second"]) / 2 + 4 * WEIGHTS["head"]
    assert average_bits(space, 1.0)(fours) == pytest.approx(4)  # what is pinned does not count


def test_bit_operations_multiply_the_bits_of_weights_with_those_of_what_they_read(graph: Graph) -> None:
    space = Space.of(graph, X86, [8, 4], [8, 2], {})
    macs = {name: count * (64 if name != "head" else 1) for name, count in WEIGHTS.items()}
    cost = bit_operations(space, 0.25)
    outer, inner = macs["stem"] + macs["head"], macs["first"] + macs["second"]
    assert (
        cost(space.assignment(4, 2)) == outer * 4 * 8 + inner * 4 * 2
    )  # an image and a mean, which is float, keep 8 bits
    assert cost.budget == pytest.approx(0.25 * 64 * sum(macs.values()))
    assert bit_operations(space, (4, 2)).budget == cost(space.assignment(4, 2))


# ---- Sensitivities --------------------------------------------------------------------------------------------------


def rounded_by_hand(model: nn.Module, scale: float) -> tuple[nn.Module, Tensor]:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.first.weight.copy_(torch.round(other.first.weight / scale) * scale)  # type: ignore[operator, union-attr]
    return other, other.first.weight.detach()  # type: ignore[return-value, union-attr]


@pytest.mark.parametrize("distance", ["kl", "sqnr"])
def test_divergence_is_that_of_the_model_with_such_a_weight(distance: Any) -> None:
    torch.manual_seed(0)
    model = randomised(residual()).eval()
    graph = capture(model, BATCHES[0][0][:2])
    other, weight = rounded_by_hand(model, 0.1)
    layer = next(node for node in graph.calls() if graph.site(node) == "first")
    network = Network(graph)
    trial = Trial({layer: Weights(weight, None)}, {})
    found = Divergence(network, BATCHES[:2], distance)(trial)
    x = torch.cat([batch[0] for batch in BATCHES[:2]])
    with torch.no_grad():
        wanted, came = model(x), other(x)
    if distance == "kl":
        logs = (F.log_softmax(z.double(), 1) for z in (came, wanted))
        assert found == pytest.approx(float(F.kl_div(*logs, log_target=True, reduction="batchmean")), rel=1e-4)
    else:
        assert found == pytest.approx(10 ** (-measure.sqnr(wanted, came) / 10), rel=1e-4)
    values = network.executor.inputs(BATCHES[0])
    walk = network.executor.walk(values, (), keep=graph.outputs)
    assert trial.first is next(node for node in walk if node is layer)
    from_there, whole = network.outputs(values, trial, start=layer)[0], network.outputs(BATCHES[0], trial)[0]
    assert torch.equal(from_there, whole)


def test_traces_are_those_of_the_whole_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    x = torch.randn(1600, 6)
    graph = capture(model, x[:2])
    layers = [node for node in graph.calls() if Layer.of(node)]
    value = layers[1].args[0]
    found = traces(graph, layers, [value], [[x]], seed=0)  # type: ignore[list-item]
    p = model(x).softmax(1).detach()

    def loss(weight: Tensor) -> Tensor:
        z = F.linear(torch.tanh(F.linear(x, weight, model[1].bias)), model[3].weight, model[3].bias)
        return -(p * z.log_softmax(1)).sum() / len(x)

    whole = torch.autograd.functional.hessian(loss, model[1].weight.detach()).reshape(24, 24)
    assert found[layers[0]] == pytest.approx(float(whole.trace()) / 24, rel=0.1)
    w, q = model[3].weight.detach(), p
    curvature = torch.diag_embed(q) - q[:, :, None] * q[:, None]  # of the loss by the last layer's outputs
    by_value = torch.einsum("kj,nkl,lj->", w, curvature, w) / len(x) / 4
    assert found[value] == pytest.approx(float(by_value), rel=0.1)  # type: ignore[index]


@pytest.mark.parametrize("sensitivity", ["kl", "sqnr", "hessian"])
def test_every_sensitivity_gives_a_plan_within_the_budget_that_is_not_worse_than_uniform(
    graph: Graph, sensitivity: Any
) -> None:
    plan = mixed(average_bits=4, sensitivity=sensitivity).plan(graph)
    assert plan.met
    assert plan.cost <= 4
    assert plan.divergence[plan.chosen] == min(plan.divergence.values())
    assert "uniform 4" in plan.divergence
    used = [(row.weights, row.parameters) for row in plan.rows]
    assert sum(bits * n for bits, n in used if bits) == pytest.approx(plan.cost * sum(WEIGHTS.values()))


def test_activations_are_chosen_where_bit_operations_count(graph: Graph) -> None:
    plan = mixed(max_bit_operations=(4, 4), activations=CHOICES).plan(graph)
    space = Space.of(graph, X86, [8, 4, 2], [8, 4, 2], {})
    assert plan.budget == bit_operations(space, (4, 4)).budget
    assert plan.met
    assert plan.divergence[plan.chosen] <= plan.divergence["uniform 4/4"]
    assert {row.activations for row in plan.rows if row.activations} <= set(CHOICES)

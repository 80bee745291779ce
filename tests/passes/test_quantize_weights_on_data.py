"""Weights in blocks whose codes are chosen on data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, apply, assert_close, capture
from torch import Tensor, nn
from weights_in_blocks import EXACT, X86, perceptron, quantized, tokens

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.compiler.recipes import weight_only
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import cost
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.passes.rounding import LearnRounding
from graphopt.passmanager.runner import run


def structured(count: int = 64) -> Tensor:
    """Values that lie near a few directions, as those inside of networks do."""
    generator = torch.Generator().manual_seed(5)
    basis = torch.randn(10, 72, generator=generator)
    return torch.randn(count, 7, 10, generator=generator) @ basis + 0.1 * torch.randn(count, 7, 72, generator=generator)


@pytest.mark.parametrize(
    "by", [QuantizeWeights(4, 32), QuantizeWeights(2, 32, symmetric=False), QuantizeWeights(4, 64)]
)
def test_codes_chosen_on_data_beat_the_nearest(by: QuantizeWeights) -> None:
    model, data, unseen = perceptron(), [[structured()]], structured(96)[64:]
    graph = quantized(model, tokens(), by=by)
    nearest = cost.sqnr(model(unseen).detach(), graph(unseen).detach())
    assert len(apply(LearnRounding(data), graph)) == 3
    assert cost.sqnr(model(unseen).detach(), graph(unseen).detach()) > nearest + 3
    assert_close(lower(graph, EXACT)(unseen), graph(unseen), 1e-5)
    assert apply(LearnRounding(data), graph) == []


@pytest.mark.thorough
def test_gradients_go_on_from_there() -> None:
    model, data = perceptron(), [[structured()]]
    graph = quantized(model, tokens(), by=QuantizeWeights(2, 32))
    apply(LearnRounding(data, method="adaround", iterations=30, batch=16), graph)
    assert_close(lower(graph, EXACT)(structured(8)), graph(structured(8)), 1e-5)


@pytest.mark.thorough
def test_learned_layers_that_share_a_weight_part() -> None:
    model = Model(lambda m, x: m.layer(m.layer(x).relu()), layer=nn.Linear(72, 72))
    graph = quantized(model, tokens(), by=QuantizeWeights(2, 32))
    before = cost.sqnr(model(structured()).detach(), graph(structured()).detach())
    apply(LearnRounding([[structured()]]), graph)
    assert cost.sqnr(model(structured()).detach(), graph(structured()).detach()) > before + 3


@pytest.mark.thorough
def test_the_recipe_is_what_optimize_takes() -> None:
    model, x = perceptron(), structured(8)
    result = graphopt.optimize(model, x, target="x86", calibration=x, passes=weight_only(X86))
    assert result.report.size_after < result.report.size_before / 2
    graph = capture(model, x)
    nearest, learned = graph.clone(), graph.clone()
    run(weight_only(X86, 4, 64), nearest)
    run(weight_only(X86, 4, 64, data=[[structured()]], layers={"4": None}), learned)
    assert learned.calls(FAKE_QUANTIZE)[0].args[6] == 64
    reference = F.softmax(model(x).detach(), -1)
    assert cost.sqnr(reference, F.softmax(learned(x).detach(), -1)) > cost.sqnr(
        reference, F.softmax(nearest(x).detach(), -1)
    )

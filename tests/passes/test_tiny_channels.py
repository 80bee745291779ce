"""Output channels with weights far below those of their neighbours keep a scale of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import capture
from torch import nn

import graphopt
from graphopt.formats import Format
from graphopt.formats.blocks import block_grid
from graphopt.ir.cost import sqnr
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import find, machine_here

X = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
TINY = 2  # the channel


def network(reach: float, layer: int = 4, *, bias: bool = True) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 6, bias=bias))
    with torch.no_grad():
        for tensor in (model[layer].weight, model[layer].bias):
            if isinstance(tensor, torch.Tensor):
                tensor[TINY] *= reach / tensor[TINY].abs().max()
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reach", [1e-13, 1e-20])
@pytest.mark.parametrize("target", ["arm", "x86", "tvm-x86"])
def test_a_tiny_channel_of_the_answer_is_as_good_as_its_neighbours(target: str, reach: float, bias: bool) -> None:
    if target.startswith("tvm"):
        pytest.importorskip("tvm", reason="needs graphopt[tvm]")
    model = network(reach, bias=bias)
    weights = Format(7, per_channel=True)  # whose products do not saturate on a CPU without VNNI
    formats = {"*": LayerFormat(weights=weights)}
    result = graphopt.optimize(model, X, target=target, calibration=X, measure=False, formats=formats)
    answer = torch.as_tensor(result.artifact(X))
    machine = None if target.startswith("tvm") else machine_here()
    assert torch.equal(graphopt.simulate(result.graph, target, machine=machine)(X), answer)
    ordinary = [sqnr(model(X)[:, c], answer[:, c]) for c in range(6) if c != TINY]
    assert sqnr(model(X)[:, TINY], answer[:, TINY]) > min(ordinary) - 6
    assert not result.report.warnings


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        {"rounding": "gptq"},
        {"rounding": "adaround"},
        {"formats": {"4": LayerFormat(weights=Format(8, symmetric=False, per_channel=True))}},
        {"weight_only": 8},
    ],
)
def test_however_codes_are_chosen_a_tiny_channel_keeps_its_scale(options: dict[str, Any]) -> None:
    model = network(1e-18)
    result = graphopt.optimize(model, X, target="arm", calibration=X, measure=False, **options)
    assert sqnr(model(X)[:, TINY], torch.as_tensor(result.artifact(X))[:, TINY]) > 25


def test_the_least_error_of_tiny_weights_is_found() -> None:
    """Their squares are smaller than any float32."""
    weight = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-22]])
    format = Format(4, per_channel=True)
    ordinary, tiny = format.fit(weight, 0, "mse").parameters[0] / weight.abs().amax(1)
    alone, _ = format.fit(weight[1:] * 1e22, 0, "mse").parameters
    assert float(tiny) == pytest.approx(float(alone[0] / (weight[1:] * 1e22).abs().max()), rel=1e-3)
    assert float(ordinary) < 1 / 7  # it clips


def test_a_tiny_block_keeps_its_scale() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1, 32:] *= 1e-16
    scale, _ = block_grid(weight, 4, 32, symmetric=False, estimator="minmax")
    assert float(scale[1, 1]) < 1e-16


@pytest.mark.parametrize(("layer", "said"), [(4, 1), (0, 0)])
def test_a_channel_too_small_for_any_scale_is_named_where_the_answer_shows_it(layer: int, said: int) -> None:
    """In front of a grid such a channel is nothing but its bias, however it is stored."""
    graph = capture(network(1e-30, layer), X)
    changes = Quantize(find("arm"), [[X]])(graph)
    found = [c.what for c in changes if "too small for 8-bit steps" in c.what]
    assert len(found) == said
    assert all("'4': the weights of 1 output channels reach no more than 1e-30" in what for what in found)

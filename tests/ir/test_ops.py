"""What a layer's view says about its weight, held against the operator itself."""

from __future__ import annotations

import pytest
import torch
from rewriting import assert_close, capture
from torch import Tensor, nn

from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv": nn.Conv2d(6, 4, 3),
    "conv of one dimension": nn.Conv1d(6, 4, 3),
    "grouped conv": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise conv": nn.Conv2d(6, 6, 3, groups=6),
    "depthwise conv with a multiplier": nn.Conv2d(6, 12, 3, groups=6),
    "transposed conv": nn.ConvTranspose2d(6, 4, 3),
    "grouped transposed conv": nn.ConvTranspose2d(6, 4, 3, groups=2),
    "depthwise transposed conv": nn.ConvTranspose2d(6, 12, 3, groups=6),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def captured(name: str) -> tuple[Graph, Layer, Tensor]:
    dims = LAYERS[name].weight.dim() - 2
    graph = capture(LAYERS[name], torch.randn(2, 6, *[9] * dims))
    (layer,) = (found for node in graph.calls() if (found := Layer.of(node)))
    return graph, layer, graph.example.tensors()[0]


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.dim() - 2))


@every_layer
def test_scaling_input_channels_is_scaling_what_the_outputs_read(name: str) -> None:
    graph, layer, x = captured(name)
    factors = torch.rand(layer.in_channels) + 0.5
    expected = graph(x * along_channels(factors, x))
    weight = layer.canonical(graph.tensor(layer.weight))
    assert layer.over_inputs(factors).shape == (*weight.shape[:2], *[1] * layer.dims)
    graph.set_constant(layer.node, WEIGHT, layer.native(weight * layer.over_inputs(factors)))
    graph.refresh()
    assert_close(graph(x), expected, 1e-5)


@every_layer
def test_scaling_output_channels_is_scaling_the_rows_of_the_weight(name: str) -> None:
    graph, layer, x = captured(name)
    factors = torch.rand(layer.out_channels) + 0.5
    bias = graph.tensor(layer.bias)
    expected = (graph(x) - along_channels(bias, x)) * along_channels(factors, x) + along_channels(bias, x)
    weight = layer.canonical(graph.tensor(layer.weight))
    graph.set_constant(layer.node, WEIGHT, layer.native(weight * layer.over_outputs(factors)))
    graph.refresh()
    assert_close(graph(x), expected, 1e-5)


@every_layer
def test_the_response_to_a_constant_input_is_the_output_away_from_the_border(name: str) -> None:
    graph, layer, x = captured(name)
    constant = torch.randn(layer.in_channels)
    output = graph(torch.zeros_like(x) + along_channels(constant, x))
    middle = output[(0, slice(None), *[size // 2 for size in output.shape[2:]])]
    response = layer.respond(layer.canonical(graph.tensor(layer.weight)), constant)
    assert_close(response + graph.tensor(layer.bias), middle, 1e-5)


def test_a_vector_that_does_not_count_the_inputs_is_refused() -> None:
    _, layer, _ = captured("grouped conv")
    with pytest.raises(RuntimeError):
        layer.over_inputs(torch.ones(8))


def test_flags_of_channels_stay_flags() -> None:
    _, layer, _ = captured("grouped conv")
    chosen = layer.over_inputs(torch.tensor([True, False, False, False, False, True]))
    assert chosen.squeeze().tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2

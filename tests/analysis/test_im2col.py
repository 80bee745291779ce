"""Rows of a layer's input, and their moments."""

from __future__ import annotations

import pytest
import torch
from rewriting import capture
from torch import Tensor, nn

from graphopt.analysis.im2col import from_matrix, rows, weight_matrix
from graphopt.analysis.moments import Moments
from graphopt.fitting.least_squares import outputs
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, 2, 1), (2, 4, 9, 11)),
    "rectangular": (nn.Conv2d(3, 5, (1, 4), (2, 1), (0, 2), dilation=(1, 2)), (2, 3, 7, 12)),
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 2, dilation=2), (2, 4, 20)),
    "conv3d": (nn.Conv3d(2, 3, 3, 1, 1), (2, 2, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (2, 4, 7, 5)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 4, 3, 1, dilation=2), (2, 4, 7)),
    "linear": (nn.Linear(5, 7), (3, 5)),
    "linear on tokens": (nn.Linear(5, 7), (2, 4, 5)),
}


def layer_of(module: nn.Module, x: Tensor) -> tuple[Graph, Layer]:
    graph = capture(module, x)
    layer = next(found for node in graph.calls() if (found := Layer.of(node)))
    return graph, layer


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_weight_matrix_are_what_the_layer_computes(name: str) -> None:
    module, shape = LAYERS[name]
    x = torch.randn(shape)
    graph, layer = layer_of(module, x)
    weight = graph.tensor(layer.weight)
    with torch.no_grad():
        expected = module(x)
    expected = expected.reshape(shape[0], -1, 7) if layer.kind == "linear" else expected.flatten(2).transpose(1, 2)
    found = rows(layer, x) @ weight_matrix(layer, weight).T + graph.tensor(layer.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LAYERS if "conv" in name or "transposed" in name])
def test_a_convolution_without_samples_has_rows_and_moments_as_with_one(name: str) -> None:
    module, (_, *shape) = LAYERS[name]
    x = torch.randn(shape)
    _, layer = layer_of(module, x)
    assert torch.equal(rows(layer, x), rows(layer, x[None]))
    assert torch.equal(outputs(layer, module(x).detach()), outputs(layer, module(x[None]).detach()))
    alone, one = Moments(layer), Moments(layer)
    alone.update(x, outputs(layer, module(x).detach()))
    one.update(x[None], outputs(layer, module(x[None]).detach()))
    assert torch.equal(alone.xt, one.xt)


@pytest.mark.parametrize("name", LAYERS)
def test_a_matrix_goes_back_to_the_weight_it_came_from(name: str) -> None:
    module, shape = LAYERS[name]
    graph, layer = layer_of(module, torch.randn(shape))
    weight = graph.tensor(layer.weight)
    assert torch.equal(from_matrix(layer, weight_matrix(layer, weight), weight), weight)


def test_moments_of_several_batches_are_those_of_all_their_rows() -> None:
    module, shape = LAYERS["conv"]
    _, layer = layer_of(module, torch.randn(shape))
    parts = [torch.randn(3, 4, 9, 11) for _ in range(2)]
    targets = [torch.randn(3, 30, 6) for _ in range(2)]
    moments = Moments(layer)
    for x, t in zip(parts, targets, strict=True):
        moments.update(x, t)
    every = torch.cat([rows(layer, x).flatten(0, 1) for x in parts]).double()
    wanted = torch.cat([t.flatten(0, 1) for t in targets]).double()
    torch.testing.assert_close(moments.xx[0], torch.cov(every.T, correction=0), rtol=1e-4, atol=1e-5)
    centred = (every - every.mean(0)).T @ (wanted - wanted.mean(0)) / len(every)
    torch.testing.assert_close(moments.xt[0], centred, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.mean_x[0], every.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.mean_t[0], wanted.mean(0), rtol=1e-4, atol=1e-5)


def test_moments_take_a_share_of_the_rows_of_a_large_input() -> None:
    _, layer = layer_of(nn.Conv2d(1, 1, 1), torch.randn(2, 1, 4, 4))
    moments = Moments(layer)
    moments.update(torch.randn(2, 1, 256, 256))
    assert 10_000 < moments.count <= 16_384
    torch.testing.assert_close(float(moments.xx), 1.0, rtol=0.1, atol=0)

"""CorrectBias: means of layers' outputs come back to what they were before rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphopt.graph import Graph
from graphopt.numerics import Format
from graphopt.passes.correct_bias import CorrectBias
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.passes.quantize import Quantize
from graphopt.pipeline import run
from graphopt.targets import find

COARSE = Format(bits=3, signed=True, symmetric=True, per_channel=True)
FINE = Format(bits=16, signed=False, symmetric=False)


def simulated(model: nn.Module, data: Tensor, batches: list[list[Tensor]]) -> Graph:
    """Weights of 3 bits, values as good as exact: what differs comes from the weights."""
    graph = Graph.capture(model.eval(), data[:1])
    run([Quantize(find("x86"), batches, estimator="minmax", weights=COARSE, activations=FINE)], graph, verify=False)
    return graph


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(4, 4, 3, groups=4)],
    ids=["3x3", "grouped", "depthwise"],
)
def test_the_mean_of_every_output_channel_comes_back(layer: nn.Module) -> None:
    data = torch.rand(64, 4, 9, 9) + torch.arange(4.0)[:, None, None]
    model = nn.Sequential(layer, nn.Tanh())
    batches = [[b] for b in data.split(16)]
    graph = simulated(model, data, batches)
    with torch.no_grad():
        wanted = layer(data).mean((0, 2, 3))
        before = (values(graph, data).mean((0, 2, 3)) - wanted).abs().max()
        assert CorrectBias(batches)(graph)
        graph.refresh()
        after = (values(graph, data).mean((0, 2, 3)) - wanted).abs().max()
    assert after < 0.15 * before


def values(graph: Graph, data: Tensor) -> Tensor:
    """What the layer in front of tanh computes."""
    return torch.atanh(graph(data).double().clamp(-1 + 1e-12, 1 - 1e-12)).float()


def test_a_layer_without_a_bias_gets_none() -> None:
    data = torch.rand(8, 4, 6, 6)
    graph = simulated(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)), data, [[data]])
    assert CorrectBias([[data]])(graph) == []


def test_a_float_graph_is_left_alone_and_so_is_a_corrected_one() -> None:
    data = torch.rand(8, 4, 6, 6)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()).eval()
    assert CorrectBias([[data]])(Graph.capture(model, data[:1])) == []
    graph = simulated(model, data, [[data]])
    assert CorrectBias([[data]])(graph)
    assert CorrectBias([[data]])(graph) == []


def test_a_bias_behind_the_shift_of_per_channel_ends_is_found() -> None:
    data = torch.rand(16, 3, 8, 8) * 40
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(-1, 1, 6)[:, None, None, None]
    graph = Graph.capture(model, data[:1])
    per_tensor = Format(bits=4, signed=True, symmetric=True)
    run([EqualizeChannels(), Quantize(find("x86"), [[data]], weights=per_tensor)], graph)
    assert graph.calls(torch.ops.aten.sub.Tensor), "the first layer's bias should be shifted"
    assert len(CorrectBias([[data]])(graph)) == 2
    graph.refresh()
    with torch.no_grad():
        error = (graph(data) - model(data)).mean((0, 2, 3)).abs().max()
    assert error < 0.1 * model(data).abs().max()

"""CorrectBias: means of layers' outputs come back to what they were before rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passmanager.runner import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

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


@pytest.mark.thorough
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


def test_the_border_of_zeros_counts() -> None:
    """A kernel of 3 on an image of 3 x 3: nearly every position reads zeros."""
    data = torch.rand(64, 4, 3, 3) + 2
    layer = nn.Conv2d(4, 6, 3, padding=1)
    batches = [[b] for b in data.split(16)]
    graph = simulated(nn.Sequential(layer), data, batches)
    with torch.no_grad():
        wanted = layer(data).mean((0, 2, 3))
        before = (graph(data).mean((0, 2, 3)) - wanted).abs().max()
        assert CorrectBias(batches)(graph)
        graph.refresh()
        assert (graph(data).mean((0, 2, 3)) - wanted).abs().max() < 0.02 * before


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Conv2d(4, 6, 3), torch.rand(4, 9, 9) + 1), (nn.Linear(4, 6), torch.rand(4) + 1)],
    ids=["conv", "linear"],
)
def test_an_input_without_a_batch_is_one_sample(layer: nn.Module, x: Tensor) -> None:
    batches = [[x + 0.01 * number] for number in range(3)]
    graph = Graph.capture(layer.eval(), x, dynamic_batch=False)
    run([Quantize(find("x86"), batches, estimator="minmax", weights=COARSE, activations=FINE)], graph, verify=False)
    with torch.no_grad():
        wanted = layer(batches[1][0])
        before = (graph(batches[1][0]) - wanted).square().mean()
        assert CorrectBias(batches)(graph)
        graph.refresh()
        assert (graph(batches[1][0]) - wanted).square().mean() < 0.5 * before


def test_what_is_worse_on_samples_held_out_is_left() -> None:
    """The sample that is held out, the first, is unlike the others: their mean error is not its own."""
    data = torch.cat([-torch.ones(1, 4, 6, 6), torch.ones(7, 4, 6, 6)])
    graph = simulated(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh()), data, [[data]])
    start = graph.state_dict()
    assert CorrectBias([[data]])(graph) == []
    assert all(torch.equal(value, start[name]) for name, value in graph.state_dict().items())
    assert CorrectBias([[data]])(graph) == []


def trained_norms(residual: bool) -> tuple[nn.Module, Tensor]:
    """Layers whose batch norms hold the statistics of the data that comes with them."""
    from rewriting import Model

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(m.n1(m.c1(x)))  # type: ignore[operator]
        z = m.n2(m.c2(y))  # type: ignore[operator]
        return m.c3(F.relu(y + z) if residual else F.relu6(z))  # type: ignore[operator, no-any-return]

    model = Model(
        body, c1=nn.Conv2d(3, 8, 3), n1=nn.BatchNorm2d(8), c2=nn.Conv2d(8, 8, 3, padding=1), n2=nn.BatchNorm2d(8),
        c3=nn.Conv2d(8, 5, 3, padding=1),
    )  # fmt: skip
    x = torch.randn(128, 3, 10, 10)
    for norm in (model.n1, model.n2):
        norm.momentum = None  # type: ignore[assignment]
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("residual", [False, True])
def test_batch_norms_say_without_data_nearly_what_data_say(residual: bool) -> None:
    model, x = trained_norms(residual)
    graph = Graph.capture(model, x[:1])
    FoldBatchNorm()(graph)
    run([Quantize(find("x86"), [[x]], estimator="minmax", weights=COARSE, activations=FINE)], graph, verify=False)
    start, empirical = graph.state_dict(), graph.clone()
    changes = CorrectBias()(graph)
    assert [change.what for change in changes if "left as it is" in change.what] == [
        "left as it is: no batch norm says what the input 'inputs_0' is like"
    ]
    assert len(changes) == 3
    CorrectBias([[x]])(empirical)
    for name in ("c2.bias", "c3.bias"):
        shift = empirical.state_dict()[name] - start[name]
        apart = graph.state_dict()[name] - empirical.state_dict()[name]
        assert float(apart.norm()) < 0.3 * float(shift.norm())
    assert CorrectBias()(graph) == []


def test_without_data_and_without_norms_it_says_what_to_do() -> None:
    data = torch.rand(8, 4, 6, 6)
    graph = simulated(nn.Sequential(nn.Conv2d(4, 6, 3)), data, [[data]])
    with pytest.raises(InputError, match="run FoldBatchNorm before Quantize, or pass CorrectBias"):
        CorrectBias()(graph)

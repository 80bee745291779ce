"""What pruning without data makes of the means of removed channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, capture, randomised
from torch import Tensor, nn

from graphopt.ir.cost import sqnr
from graphopt.ir.layer import Layer
from graphopt.passes.pruning import Prune, batch_norm_scale
from graphopt.passes.pruning.compensate import expected_input

Body = Callable[[nn.Module, Tensor], Tensor]
CHANNELS = 6
SCALES = torch.linspace(-1, 2, CHANNELS)

BEHIND: dict[str, Body] = {
    "prelu": lambda m, y: m.per_channel(y),  # type: ignore[operator]
    "prelu with one slope": lambda m, y: m.single(y),  # type: ignore[operator]
    "prelu of a relu6": lambda m, y: m.per_channel(F.relu6(y) - 1),  # type: ignore[operator]
    "an addend": lambda m, y: (y + m.scales).relu(),
    "a factor": lambda m, y: (m.scales * y).sigmoid(),
    "an end per channel": lambda m, y: torch.clamp(y, max=m.scales),
    "a square": lambda m, y: y * y,
    "a pool": lambda m, y: F.adaptive_avg_pool2d(m.per_channel(y), 1),  # type: ignore[operator]
}


def behind_norm(body: Body, *, linear: bool = False) -> nn.Module:
    """y = a batch norm of values that are distributed as its statistics say."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(CHANNELS, affine=True) if linear else nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    norm.eval()
    read = nn.Linear(CHANNELS, 4) if linear else nn.Conv2d(CHANNELS, 4, 1)
    per_channel, single = nn.PReLU(CHANNELS), nn.PReLU()
    with torch.no_grad():
        per_channel.weight.copy_(SCALES)
    model = Model(lambda m, x: m.read(body(m, m.norm(x))), norm=norm, read=read, per_channel=per_channel, single=single)
    model.register_buffer("scales", SCALES if linear else SCALES[:, None, None])
    return model.eval()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", BEHIND)
def test_means_behind_a_batch_norm_are_those_of_its_distribution(name: str, linear: bool) -> None:
    if linear and "pool" in name:
        pytest.skip("a pool of images")
    model = behind_norm(BEHIND[name], linear=linear)
    x = torch.randn(2, CHANNELS) if linear else torch.randn(2, CHANNELS, 8, 8)
    graph = capture(model, x)
    (layer,) = [found for node in graph.calls() if (found := Layer.of(node))]
    mean = expected_input(graph, layer.input)
    assert mean is not None
    norm = model.norm
    y = torch.randn(20_000, CHANNELS, *x.shape[2:]) * lying(norm.weight, x) + lying(norm.bias, x)  # type: ignore[arg-type]
    seen = BEHIND[name](model, y).transpose(0, 1).flatten(1).detach()
    assert torch.allclose(mean.float(), seen.mean(1), atol=0.03 * float(seen.std()))


def lying(vector: Tensor, x: Tensor) -> Tensor:
    return vector.detach().reshape(-1, *[1] * (x.dim() - 2))


def test_a_constant_that_differs_from_place_to_place_counts_on_average() -> None:
    model = behind_norm(lambda m, y: y + m.places)  # type: ignore[operator]
    model.register_buffer("places", torch.randn(CHANNELS, 8, 8))
    graph = capture(model, torch.randn(2, CHANNELS, 8, 8))
    (layer,) = [found for node in graph.calls() if (found := Layer.of(node))]
    mean = expected_input(graph, layer.input)
    assert mean is not None
    expected = model.norm.bias + model.places.mean((1, 2))  # type: ignore[operator, union-attr]
    assert torch.allclose(mean.float(), expected, atol=1e-5)


def test_pruning_without_data_keeps_the_mean_behind_prelu() -> None:
    """A channel that hardly varies: what is left of it is its mean, behind a slope of its own."""
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 4, 1))).eval()
    norm, act = model[1], model[2]
    with torch.no_grad():
        norm.weight[:2], norm.bias[:2], act.weight[:2] = 1e-4, -3.0, 0.7
    x = torch.randn(8, 3, 10, 10)
    found = {}
    for how in ("means", "none"):
        graph = capture(model, x)
        Prune(0.9, layers={"3": None, "0": 6 / 8}, compensate=how, criterion=batch_norm_scale)(graph)
        found[how] = sqnr(model(x), graph(x))
    assert found["means"] > found["none"] + 20

"""Inputs made from a network alone: do the batch norms see in them what they saw in training?"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from graphopt.compiler.optimize import optimize
from graphopt.data.calibration import synthetic
from graphopt.data.synthesize import MOST, distil, without_data
from graphopt.execution.executor import Executor
from graphopt.ir.graph import Graph


def scenes(count: int, seed: int) -> Iterator[Tensor]:
    """Smooth images far from standard normal: a mean and a spread of their own for every channel."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        coarse = torch.randn(32, 3, 4, 4, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
        yield smooth * torch.tensor([3.0, 0.5, 1.0]).view(1, 3, 1, 1) + torch.tensor([2.0, -1.0, 0.0]).view(1, 3, 1, 1)


def trained(dead: bool = False) -> nn.Module:
    """A network whose batch norms remember `scenes`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=None), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    if dead:
        with torch.no_grad():
            model[0].weight[2] = 0
    with torch.no_grad():
        for batch in scenes(8, seed=1):
            model(batch)
    return model.eval()


def capture(model: nn.Module) -> Graph:
    return Graph.capture(model, torch.zeros(1, 3, 16, 16))


def differences(graph: Graph, batch: Tensor) -> list[float]:
    """For each batch norm, the largest distance of a channel's mean from the remembered one, in deviations."""
    found, values = [], torch.no_grad()
    with values:
        x = batch
        for node in graph.calls():
            args = [graph.tensor(a) if getattr(a, "op", "") == "get_attr" else a for a in node.args]
            if "batch_norm" in str(node.target):
                mean, var = args[3], args[4]
                found.append(float(((x.mean((0, 2, 3)) - mean).abs() / (var + 1e-9).sqrt()).max()))
            x = node.target(x, *args[1:])
    return found


@pytest.mark.parametrize("dead", [False, True])
def test_the_batch_norms_see_what_they_remember(dead: bool) -> None:
    graph = capture(trained(dead))
    noise = list(synthetic(graph, batches=2))
    for before, after in zip(noise, distil(graph, noise), strict=True):
        assert after[0].shape == before[0].shape
        assert bool(torch.isfinite(after[0]).all())
        if not dead:  # a channel that never changes has no deviation to measure by
            assert max(differences(graph, after[0])) < 0.3 < max(differences(graph, before[0]))


@pytest.mark.thorough
def test_the_means_of_values_are_nearer_to_those_of_real_data() -> None:
    graph = capture(trained())
    relu = next(node for node in reversed(graph.calls()) if "relu" in str(node.target))

    def means(batches: list[list[Tensor]]) -> Tensor:
        return torch.stack([Executor(graph).run([relu], batch)[relu].mean((0, 2, 3)) for batch in batches]).mean(0)

    noise = list(synthetic(graph, batches=2))
    real = means([[batch] for batch in scenes(4, seed=7)])
    assert float((means(distil(graph, noise)) - real).norm()) < 0.5 * float((means(noise) - real).norm())


@pytest.mark.thorough
def test_distilling_is_repeatable_and_changes_neither_graph_nor_start() -> None:
    graph = capture(trained())
    text, weights = str(graph), {k: v.clone() for k, v in graph.module.state_dict().items()}
    noise = list(synthetic(graph, batches=1))
    begun = noise[0][0].clone()
    first, second = distil(graph, noise, steps=5), distil(graph, noise, steps=5)
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(noise[0][0], begun)
    assert str(graph) == text
    assert all(torch.equal(weights[k], v) for k, v in graph.module.state_dict().items())


@pytest.mark.thorough
def test_a_small_network_gets_the_most_samples_in_batches() -> None:
    batches = without_data(capture(trained()))
    assert batches.synthetic
    assert sum(len(x) for (x,) in batches) == MOST
    assert any("distilled" in note for note in batches.notes)


@pytest.mark.thorough
def test_a_fixed_batch_is_kept() -> None:
    graph = Graph.capture(trained(), torch.zeros(2, 3, 16, 16), dynamic_batch=False)
    assert {len(x) for (x,) in without_data(graph)} == {2}


@pytest.mark.parametrize(
    ("model", "example", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8), "no batch norms"),
        (
            nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.BatchNorm1d(12)),
            torch.zeros(2, 3).long(),
            "floating-point",
        ),
    ],
)
def test_where_nothing_can_be_distilled_the_notes_say_why(model: nn.Module, example: Tensor, reason: str) -> None:
    batches = without_data(Graph.capture(model.eval(), example))
    assert len(list(batches)) == 8
    assert any(reason in note for note in batches.notes)


@pytest.mark.thorough
def test_optimize_without_data_distils_and_says_so() -> None:
    report = optimize(trained(), torch.zeros(1, 3, 16, 16), measure=False).report
    assert any("distilled" in note for note in report.notes)
    assert any("no calibration data" in warning for warning in report.warnings)


@pytest.mark.slow
def test_resnet20_in_four_bits_without_any_image(zoo: ModuleType) -> None:
    """Noise gives 47 %, real images 89 %."""

    from graphopt.formats import Format
    from graphopt.targets import find

    x, y = (part[:2000] for part in zoo.cifar10("test"))
    low = find("x86").replace(weights=Format(4, per_channel=True), activations=Format(4, signed=False, symmetric=False))
    graph = optimize(zoo.cifar_resnet(20), torch.zeros(1, 3, 32, 32), target=low, measure=False).graph
    with torch.no_grad():
        right = sum(int((graph(a).argmax(1) == b).sum()) for a, b in zip(x.split(100), y.split(100), strict=True))
    assert right > 0.82 * len(y)

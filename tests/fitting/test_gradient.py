"""Gradient descent on what is learnable of a region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from rewriting import capture
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.fitting.fit import Found, Parametrization, fit
from graphopt.fitting.gradient import Learnable, Search, descend
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

DATA = [[part] for part in torch.randn(48, 6, generator=torch.Generator().manual_seed(1)).split(16)]
SEARCH = Search(iterations=60, batch=8, rate=0.02, seed=0)


class Weights(Learnable):
    """The weights of some layers, free."""

    def __init__(self, graph: Graph, layers: list[Layer], strength: float) -> None:
        self.values_of = {layer.weight: graph.tensor(layer.weight).clone().requires_grad_() for layer in layers}
        self.strength, self.seen = strength, list[float]()

    def values(self, share: float) -> Mapping[Node, Any]:
        return self.values_of

    def parameters(self) -> list[tuple[Tensor, float]]:
        return [(value, 1.0) for value in self.values_of.values()]

    def penalty(self, done: float) -> Tensor | None:
        self.seen.append(done)
        if not self.strength:
            return None
        return self.strength * torch.stack([value.square().sum() for value in self.values_of.values()]).sum()


class FreeBlock(Parametrization):
    """Two layers with an activation between them, learned together."""

    strength = 0.0

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        self.learned = Weights(graph, self.layers, self.strength)
        descend(graph, self.region, samples, self.learned, SEARCH)
        yield {str(node.target): value.detach() for node, value in self.learned.values(1.0).items()}

    @property
    def layers(self) -> list[Layer]:
        return [layer for node in self.region.nodes if (layer := Layer.of(node))]

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {layer.weight: found[str(layer.weight.target)] for layer in self.layers}

    def store(self, graph: Graph, found: Found) -> None:
        for node, value in self.constants(graph, found).items():
            graph.put_constant(node, value)


def pair() -> tuple[Graph, Graph, FreeBlock]:
    torch.manual_seed(0)
    original = capture(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)), DATA[0][0][:2])
    graph = original.clone()
    for node in [node for node in graph.calls() if Layer.of(node)]:
        weight = graph.tensor(node.args[1])  # type: ignore[arg-type]
        graph.put_constant(node.args[1], weight + 0.3 * torch.randn(weight.shape) * weight.std())  # type: ignore[arg-type]
    regions = [Region.between(g.inputs, g.outputs[0]) for g in (graph, original)]
    return original, graph, FreeBlock(region=regions[0], source=regions[1])


def test_a_block_is_learned_through_its_activation() -> None:
    original, graph, task = pair()
    (found,) = fit(original, graph, DATA, [task], "learning")
    assert found.after < 0.3 * found.before
    assert task.learned.seen == [turn / SEARCH.iterations for turn in range(SEARCH.iterations)]


def test_what_is_learned_is_refused_where_samples_held_out_lose() -> None:
    original, graph, task = pair()
    task.strength, start = 100.0, graph.state_dict()  # drives all weights to zero
    (found,) = fit(original, graph, DATA, [task], "learning")
    assert all(value.abs().max() < 0.2 for value in found.found.values())
    assert found.after > found.before
    assert all(torch.equal(value, start[name]) for name, value in graph.state_dict().items())


@pytest.mark.parametrize("importance", [True, False])
def test_errors_may_count_by_the_gradient_of_the_loss(importance: bool) -> None:
    original, graph, task = pair()
    seen: list[Samples] = []
    task.solve = lambda graph, samples: seen.append(samples) or FreeBlock.solve(task, graph, samples)  # type: ignore[method-assign, func-returns-value]
    fit(original, graph, DATA, [task], "learning", importance=importance)
    weights = [part.importance for part in seen[0].parts if part.importance is not None]
    assert len(weights) == (len(DATA) if importance else 0)
    if importance:
        assert torch.cat(weights).mean() == pytest.approx(1, rel=1e-5)
        assert all(w.shape == part.wanted.shape for w, part in zip(weights, seen[0].parts, strict=True))

"""A network, a changed twin of it, and the images that tests of fitting share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rewriting import Model, capture, randomised
from torch import Tensor, nn

from graphopt.fitting.fit import Found
from graphopt.fitting.least_squares import LayerWeights
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

DATA = [[part] for part in torch.split(torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1)), 16)]


def network() -> nn.Module:
    """With a batch norm, a residual stream, a depthwise convolution, and layers with and without a bias."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.norm(m.stem(x)))
        y = torch.relu(y + m.wide(torch.relu(m.depthwise(y))))
        return m.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    return randomised(
        Model(
            body, stem=nn.Conv2d(3, 8, 3, bias=False), norm=nn.BatchNorm2d(8), depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            wide=nn.Conv2d(8, 8, 1, bias=False), head=nn.Linear(8, 5),
        )
    )  # fmt: skip


def changed(original: Graph, amount: float = 0.3) -> Graph:
    """The same network with noise on its weights."""
    graph, generator = original.clone(), torch.Generator().manual_seed(2)
    for layer in (layer for node in graph.calls() if (layer := Layer.of(node))):
        weight = graph.tensor(layer.weight)
        noise = torch.randn(weight.shape, generator=generator) * weight.std()
        graph.put_constant(layer.weight, weight + amount * noise)
    return graph


def pair() -> tuple[Graph, Graph]:
    original = capture(network(), DATA[0][0][:2])
    return original, changed(original)


def tasks(original: Graph, graph: Graph) -> list[LayerWeights]:
    return LayerWeights.all_of(graph, {node.name: node for node in original.nodes})


def assert_equal(one: Graph, other: Graph) -> None:
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def counting(monkeypatch: pytest.MonkeyPatch, stop: Callable[[int], bool]) -> list[str]:
    done, solve = list[str](), LayerWeights.solve

    def counted(self: LayerWeights, graph: Graph, samples: Samples) -> Iterator[Found]:
        if stop(len(done)):
            raise KeyboardInterrupt
        done.append(graph.site(self.layer.node))
        return solve(self, graph, samples)

    monkeypatch.setattr(LayerWeights, "solve", counted)
    return done

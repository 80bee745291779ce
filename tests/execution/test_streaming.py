"""Walking a graph over many batches."""

from __future__ import annotations

import pytest
import torch
from blocks import images
from rewriting import capture
from small_models import MODELS

from graphopt.execution.executor import Executor
from graphopt.execution.streaming import Frontier
from graphopt.ir.layer import Layer


@pytest.mark.parametrize("name", MODELS)
def test_a_walk_sees_what_running_up_to_each_layer_sees(name: str) -> None:
    graph = capture(MODELS[name](), images(2))
    batches = [[images(2)], [images(3, seed=1)]]
    walk = Frontier(graph, batches)
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    assert layers
    for layer in layers:
        inputs = walk.before(layer.node, [layer.input])
        for batch, (x,) in zip(batches, inputs, strict=True):
            assert torch.equal(x, Executor(graph).run([layer.input], batch)[layer.input])


def test_a_weight_changed_on_the_way_counts_from_there_on() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1))
    graph = capture(model, images(2))
    first, second = (layer for node in graph.calls() if (layer := Layer.of(node)))
    walk = Frontier(graph, [[images(2)]])
    walk.before(first.node, [])
    graph.put_constant(first.weight, torch.zeros(4, 3, 1, 1))
    ((x,),) = walk.before(second.node, [second.input])
    assert torch.equal(x, model[0].bias.detach()[:, None, None].expand_as(x))


def test_only_what_is_in_flight_is_kept() -> None:
    graph = capture(torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(6))), images(2))
    layers = [node for node in graph.calls() if Layer.of(node)]
    walk = Frontier(graph, [[images(2)]])
    walk.before(layers[4], [])
    assert list(walk._values[0]) == [layers[3]]


def test_what_is_given_is_not_computed_again() -> None:
    graph = capture(torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3))), images(2))
    first, second, third = (node for node in graph.calls() if Layer.of(node))
    walk = Frontier(graph, [[images(2)], [images(1)]])
    walk.before(first, [])
    known = [torch.ones(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
    walk.give(first, known)
    assert [x for (x,) in walk.before(second, [first])] == known  # the very tensors
    found = [x for (x,) in walk.before(third, [second])]
    for x, y in zip(known, found, strict=True):
        assert torch.equal(y, Executor(graph).run([second], {first: x})[second])

"""Parts of graphs."""

from __future__ import annotations

from typing import Any

import torch
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.execution.executor import Executor
from graphopt.fitting.region import Region
from graphopt.ir.layer import Layer


def branches() -> nn.Module:
    body = lambda m, x: m.last(torch.relu(m.left(x)) + m.right(x))  # noqa: E731
    return Model(body, left=nn.Conv2d(3, 4, 1), right=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1))


def test_everything_between_some_values_and_another_is_one_region() -> None:
    x = torch.randn(2, 3, 5, 5)
    graph = capture(branches(), x)
    (total,) = graph.calls(torch.ops.aten.add.Tensor)
    region = Region.between(graph.inputs, total)
    assert [graph.site(node) for node in region.nodes if Layer.of(node)] == ["left", "right"]
    assert region.nodes[-1] is region.output is total
    assert region.first is region.nodes[0]
    assert torch.equal(region.run(Executor(graph), [x]), Executor(graph).run([total], [x])[total])


def test_calls_on_constants_belong_to_it_but_do_not_begin_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Any:
            return nn.functional.linear(x, self.weight * 2)

    graph = capture(Scaled(), torch.randn(2, 3))
    (layer,) = (layer for node in graph.calls() if (layer := Layer.of(node)))
    region = Region.of_layer(layer)
    assert [node.target for node in region.nodes] == [torch.ops.aten.mul.Tensor, torch.ops.aten.linear.default]
    assert region.first is layer.node


def test_samples_are_told_apart_where_the_batch_size_is_free() -> None:
    for dynamic in (True, False):
        graph = capture(branches(), torch.randn(2, 3, 5, 5), dynamic_batch=dynamic)
        assert all(Region.of_layer(layer).by_sample == dynamic for node in graph.calls() if (layer := Layer.of(node)))


def test_a_table_has_no_samples() -> None:
    body = lambda m, x: m.mix(m.table) + x  # noqa: E731
    model = Model(body, mix=nn.Linear(3, 3))
    model.register_buffer("table", torch.randn(5, 3))
    graph = capture(model, torch.randn(2, 5, 3))
    (layer,) = (layer for node in graph.calls() if (layer := Layer.of(node)))
    assert not Region.of_layer(layer).by_sample

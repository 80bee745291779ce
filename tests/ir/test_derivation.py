"""Shapes are derived anew where an edit changed what they depend on, and only there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.node import Node

import graphopt
from graphopt.ir.derivation import DERIVATION, described
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.shapes import _Shapes
from graphopt.passes.cleanup import FoldBatchNorm, Simplify


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def graph() -> Graph:
    return Graph.capture(network(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operators that were run with fake tensors."""
    found: list[Any] = []
    original: Callable[..., Any] = _Shapes.call_function

    def counted(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
        found.append(target)
        return original(self, target, args, kwargs)

    monkeypatch.setattr(_Shapes, "call_function", counted)
    return found


def anew(graph: Graph) -> dict[str, Any]:
    """What every node's value looks like where nothing is remembered."""
    copy = graph.clone()
    for node in copy.nodes:
        node.meta.pop(DERIVATION.name, None)
    copy.refresh()
    return looks(copy)


def looks(graph: Graph) -> dict[str, Any]:
    return {n.name: [str(part) for part in described(n.meta.get("val"))] for n in graph.nodes if n.op != "output"}


def test_a_graph_that_was_not_edited_derives_nothing(graph: Graph, derived: list[Any]) -> None:
    graph.refresh()
    graph.clone().refresh()
    assert derived == []


def test_behind_a_value_of_the_same_shape_nothing_is_derived(graph: Graph, derived: list[Any]) -> None:
    relu = graph.calls(aten.relu.default)[0]
    relu.target = aten.sigmoid.default
    graph.refresh()
    assert derived == [aten.sigmoid.default]


@pytest.mark.thorough
def test_weights_of_another_shape_are_noticed(graph: Graph, derived: list[Any]) -> None:
    first = graph.calls(aten.conv2d.default)[0]
    graph.put_constant(weight(first), torch.randn(8, 3, 5, 5))
    with pytest.raises(RuntimeError):
        graph.refresh()  # the linear layer wants an image of another size
    assert derived[:3] == [aten.conv2d.default, aten.batch_norm.default, aten.relu.default]


def test_an_edit_that_does_not_fit_is_refused_every_time(graph: Graph) -> None:
    graph.put_constant(weight(graph.calls(aten.linear.default)[0]), torch.randn(5, 63))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            graph.refresh()


@pytest.mark.thorough
def test_another_type_is_noticed(graph: Graph, derived: list[Any]) -> None:
    for node in graph.nodes:
        if graph.is_constant(node):
            graph.put_constant(node, graph.tensor(node).double())
    graph.inputs[0].meta["val"] = graph.inputs[0].meta["val"].double()
    graph.refresh()
    assert graph.outputs[0].meta["val"].dtype == torch.float64
    assert len(derived) == len(graph.calls())


def weight(layer: Node) -> Node:
    found = layer.args[1]
    assert isinstance(found, Node)
    return found


class Written(nn.Module):
    """Writes into values, and changes the shape of one in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.unsqueeze_(1)
        z = y + 1
        y.add_(z)
        part = y[:, 0]
        part.relu_()
        return y.squeeze(1) + part


@pytest.mark.thorough
@pytest.mark.parametrize("dynamic", [True, False])
def test_what_writes_into_values_ends_with_the_shapes_of_a_new_derivation(dynamic: bool) -> None:
    model, x = Written().eval(), torch.randn(3, 4)
    graph = Graph.capture(model, x, dynamic_batch=dynamic)
    assert looks(graph) == anew(graph)
    assert torch.equal(graph(x), model(x))


def test_after_passes_shapes_are_those_of_a_new_derivation(graph: Graph) -> None:
    for transform in (Simplify(), FoldBatchNorm()):
        transform(graph)
        graph.refresh()
    quantized = graphopt.optimize(graph, target="arm", calibration=[torch.randn(2, 3, 8, 8)], measure=False).graph
    assert looks(quantized) == anew(quantized)


def test_a_record_of_shapes_is_not_part_of_the_file(graph: Graph, tmp_path: Any) -> None:
    graph.save(tmp_path / "graph")
    loaded = Graph.load(tmp_path / "graph")
    assert looks(loaded) == looks(graph)

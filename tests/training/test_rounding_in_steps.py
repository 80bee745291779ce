"""Rounding in a step of training: the answers and gradients of the graph's own calls, without the ReLUs that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.node import Node
from training import X, few_bits, simulated

from graphopt.execution.executor import Executor
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.training import QuantizationAware, rounding


def trained(method: str) -> Graph:
    graph, aware = simulated(few_bits(4, 4)), QuantizationAware(method)
    aware.sees([[X]])
    aware.attach(graph)
    return graph


def step(graph: Graph, overrides: dict[Node, object], layout: torch.memory_format) -> list[Tensor]:
    """The answer, and the gradient of every parameter and of the input."""
    learned = {n: graph.parameter(n) for n in graph.nodes if n.op == "get_attr" and graph.parameter(n).requires_grad}
    executor = Executor(graph, constants=learned, overrides=overrides, gradients=True, training=True)  # type: ignore[arg-type]
    x = X.clone().to(memory_format=layout).requires_grad_()
    answer = executor(x)
    return [answer, *torch.autograd.grad(answer.square().sum(), [x, *learned.values()])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", ["ste", "lsq", "lsq+"])
def test_a_step_is_that_of_the_graph_to_the_last_bit(method: str, layout: torch.memory_format) -> None:
    found, wanted = trained(method), trained(method)
    faster = rounding.overrides(found, found.results)
    assert any(node.target is aten.relu.default for node in faster) == (method != "lsq+")
    for one, other in zip(step(found, faster, layout), step(wanted, {}, layout), strict=True):
        assert torch.equal(one, other)


def test_a_relu_with_another_reader_or_that_is_watched_stays() -> None:
    graph = trained("lsq")
    relus = graph.calls(aten.relu.default)
    assert all(relu in rounding.overrides(graph, ()) for relu in relus)
    assert relus[0] not in rounding.overrides(graph, relus[:1])
    reader = next(iter(relus[0].users))
    graph.call(aten.neg.default, relus[0], before=reader, like=relus[0])
    assert relus[0] not in rounding.overrides(graph, ())


def test_a_relu_in_front_of_a_grid_that_reaches_below_zero_stays() -> None:
    graph = trained("lsq")
    relu = graph.calls(aten.relu.default)[0]
    (quantizer,) = relu.users
    zero = graph.add_constant("middle", torch.tensor(3, dtype=torch.int32), before=quantizer)
    quantizer.update_arg(2, zero)
    assert relu not in rounding.overrides(graph, ())


def test_what_is_not_dense_has_its_relu_again() -> None:
    x, scale, zero = torch.randn(8, 8), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    found = rounding.rounded(leaf.t(), scale, zero, 0, 15, -1, positive=True)
    wanted = FAKE_QUANTIZE(other.t().relu(), scale, zero, 0, 15, -1)
    found.sum().backward()
    wanted.sum().backward()
    assert torch.equal(found, wanted)
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.equal(leaf.grad, other.grad)


def test_lower_precision_is_left_to_the_operator() -> None:
    x, scale, zero = torch.randn(4, 4).bfloat16(), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        found = rounding.rounded(x, scale, zero, 0, 15, -1, positive=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, FAKE_QUANTIZE(x.float().relu(), scale, zero, 0, 15, -1))

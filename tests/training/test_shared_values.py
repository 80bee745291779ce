"""Shared values train, their weights keep the values they have."""

from __future__ import annotations

import pytest
import torch
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.formats import FAKE_QUANTIZE_TABLE
from graphopt.ir.graph import Graph
from graphopt.ir.quantizers import quantizer_of
from graphopt.passes.sharing import ShareWeights
from graphopt.passes.sparsity import Sparsify
from graphopt.training import SharedValues
from graphopt.utils.errors import InputError


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    return model, torch.randn(256, 12)


def shared() -> tuple[nn.Module, Tensor, Graph]:
    model, x = network()
    graph = capture(model, x[:2])
    apply(Sparsify(0.6), graph)
    apply(ShareWeights(2), graph)
    return model, x, graph


def codes(graph: Graph) -> list[Tensor]:
    found = graph.calls(FAKE_QUANTIZE_TABLE)
    return [quantizer_of(graph, n).quantize(graph.tensor(n.args[0])) for n in found]


def test_training_brings_answers_back_and_keeps_the_codes() -> None:
    model, x, graph = shared()
    wanted, kept = model(x).detach(), codes(graph)
    before = float((graph(x).detach() - wanted).square().mean())
    graphopt.train(graph, (x, wanted), compress=[SharedValues()], loss="mse", epochs=15, batch_size=32, rate=1e-2)
    assert float((graph(x).detach() - wanted).square().mean()) < 0.6 * before
    for now, then in zip(codes(graph), kept, strict=True):
        assert (now == then).float().mean() > 0.99  # entries may change places
        assert len(now.unique()) <= 4


def test_pruned_weights_stay_zero() -> None:
    model, x, graph = shared()
    zeros = [graph.tensor(n) == 0 for n in graph.calls(FAKE_QUANTIZE_TABLE)]
    graphopt.train(graph, (x, model(x).detach()), compress=[SharedValues()], loss="mse", epochs=2, rate=3e-2)
    for node, zero in zip(graph.calls(FAKE_QUANTIZE_TABLE), zeros, strict=True):
        assert bool((graph.tensor(node)[zero] == 0).all())


def test_attaching_and_finishing_changes_no_answer() -> None:
    _, x, graph = shared()
    before, text = graph(x), str(graph)
    each = SharedValues()
    each.attach(graph)
    assert torch.equal(graph(x), before)
    assert not graph.calls(FAKE_QUANTIZE_TABLE)
    each.finish(graph)
    assert torch.equal(graph(x), before)
    assert str(graph) == text


def test_answers_are_the_same_where_entries_changed_places() -> None:
    _, x, graph = shared()
    each = SharedValues()
    each.attach(graph)
    table = graph.parameter(each.learned[0].table)
    with torch.no_grad():
        table.copy_(table.flip(0) * 1.5)
    trained = graph(x)
    each.finish(graph)
    assert torch.equal(graph(x), trained)


def test_the_gradient_of_a_value_is_the_sum_over_its_weights() -> None:
    """Han et al., equation 3."""
    _, x, graph = shared()
    each = SharedValues()
    each.attach(graph)
    first = each.learned[0]
    dense = graph.tensor(first.weight).clone().requires_grad_()
    graph(x).square().sum().backward()
    table = graph.parameter(first.table)
    assert table.grad is not None
    weight, bias = dense, graph.tensor(graph.calls(torch.ops.aten.linear.default)[0].args[2])
    second = graph.calls(torch.ops.aten.linear.default)[1]
    hidden = torch.relu(x @ weight.T + bias)
    out = hidden @ graph.tensor(second.args[1]).T + graph.tensor(second.args[2])
    (slope,) = torch.autograd.grad(out.square().sum(), dense)
    summed = torch.zeros(len(table)).scatter_add_(0, graph.tensor(first.codes), slope.flatten())
    expected = summed * graph.tensor(first.keep)
    assert torch.allclose(table.grad, expected, rtol=1e-4, atol=1e-3)


def test_a_graph_without_shared_values_is_refused() -> None:
    model, x = network()
    with pytest.raises(InputError, match="run ShareWeights first"):
        SharedValues().attach(capture(model, x[:2]))

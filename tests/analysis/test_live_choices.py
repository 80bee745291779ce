"""Choices that are live in a graph: what is extracted answers as the graph did, and costs what was said."""

import random
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from prunable import CASES
from prunable_attention import Attention  # noqa: F401 (its cases are registered)
from prune_cases import residual
from rewriting import Model
from small_models import pre_activation, shuffling
from torch import nn

from graphopt import Graph, InputError
from graphopt.analysis.choices import Costs, extract
from graphopt.execution.executor import Executor
from graphopt.ir import cost
from graphopt.ir.choices import CHOOSE, assign, assignment, choices, one_hot
from graphopt.passes.elastic import Elastic


def elastic(make: Any, shape: tuple[int, ...], **options: Any) -> tuple[Graph, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    inputs = (torch.randn(shape),)
    graph = Graph.capture(model, inputs)
    before = graph(*inputs)
    Elastic(**{"widths": (0.25, 0.5), "kernels": (1, 3), **options})(graph)
    torch.testing.assert_close(graph(*inputs), before, rtol=1e-5, atol=1e-6)
    return graph, inputs


def draws(graph: Graph, count: int) -> list[tuple[int, ...]]:
    drawn = random.Random(0)
    return [tuple(drawn.randrange(len(choice)) for choice in choices(graph)) for _ in range(count)]


IMAGES = {name: case for name, case in CASES.items() if len(case[1]) == 4}


@pytest.mark.many
@pytest.mark.parametrize("name", IMAGES)
def test_what_is_extracted_answers_as_the_graph_and_costs_what_was_said(name: str) -> None:
    make, shape, _ = IMAGES[name]
    graph, inputs = elastic(make, shape)
    costs = Costs(graph)
    macs, parameters = costs.macs(), costs.parameters()
    for chosen in draws(graph, 6):
        assign(graph, chosen)
        expected = graph(*inputs)
        torch.testing.assert_close(Executor(graph)(*inputs), expected, rtol=1e-5, atol=1e-6)
        small = extract(graph)
        assert not small.calls(CHOOSE)
        torch.testing.assert_close(small(*inputs), expected, rtol=1e-5, atol=1e-5)
        weights = [one_hot(option, len(choice)) for option, choice in zip(chosen, costs.choices, strict=True)]
        assert float(sum(term.of(weights) for term in macs)) == pytest.approx(cost.macs(small), rel=1e-5)
        assert float(sum(term.of(weights) for term in parameters)) == pytest.approx(cost.parameters(small), rel=1e-5)


@pytest.mark.parametrize("make", [residual, pre_activation, shuffling])
def test_a_saved_supernet_is_the_same_supernet(make: Any, tmp_path: Path) -> None:
    graph, inputs = elastic(make, (2, 3, 8, 8))
    chosen = draws(graph, 1)[0]
    assign(graph, chosen)
    graph.save(tmp_path / "supernet.pt2")
    loaded = Graph.load(tmp_path / "supernet.pt2")
    assert [(c.name, c.kind, c.labels) for c in choices(loaded)] == [(c.name, c.kind, c.labels) for c in choices(graph)]
    assert assignment(loaded) == chosen
    torch.testing.assert_close(extract(loaded)(*inputs), graph(*inputs), rtol=1e-5, atol=1e-6)


def test_what_is_not_chosen_is_not_computed() -> None:
    graph, inputs = elastic(residual, (2, 3, 8, 8), widths=(), kernels=())
    walked = [len(list(Executor(graph).walk(Executor(graph).inputs(inputs), graph.outputs)))]
    assign(graph, {choice.name: 1 for choice in choices(graph)})
    walked.append(len(list(Executor(graph).walk(Executor(graph).inputs(inputs), graph.outputs))))
    assert walked[1] < walked[0] - 3 * len(choices(graph))


def test_gradients_of_the_executor_are_those_of_the_module() -> None:
    graph, inputs = elastic(residual, (2, 3, 8, 8))
    for chosen in [*draws(graph, 2), None]:
        if chosen is None:  # mixed
            for choice in choices(graph):
                graph.parameter(choice.node).fill_(1 / len(choice))
        else:
            assign(graph, chosen)
        learned = {
            n: graph.parameter(n) for n in graph.nodes if n.op == "get_attr" and graph.parameter(n).requires_grad
        }
        found = Executor(graph, constants=learned, gradients=True)(*inputs).square().sum()
        mine = torch.autograd.grad(found, list(learned.values()), allow_unused=True)
        theirs = torch.autograd.grad(graph(*inputs).square().sum(), list(learned.values()), allow_unused=True)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(
                torch.zeros(()) if a is None else a.sum(), torch.zeros(()) if b is None else b.sum()
            )


def test_gradients_of_weights_of_choices_are_those_of_finite_differences() -> None:
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)
    options = [torch.rand(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda w, *o: CHOOSE(list(o), w), (weights, *options))
    levels = torch.rand(3, 4, dtype=torch.float64)
    keep = torch.ops.graphopt.keep.default
    assert torch.autograd.gradcheck(lambda x, w: keep(x, w, levels, 1), (options[0], weights))


def test_expected_cost_is_the_mean_over_independent_choices() -> None:
    graph, _ = elastic(residual, (2, 3, 8, 8))
    costs = Costs(graph)
    torch.manual_seed(0)
    weights = [torch.softmax(torch.randn(len(choice)), 0) for choice in costs.choices]
    for term in [*costs.macs(), *costs.parameters()]:
        assert len(term.scope) <= 4  # what every option needs depends on none
        total = 0.0
        for options in product(*(range(len(costs.choices[choice])) for choice in term.scope)):
            hard = [one_hot(0, len(choice)) for choice in costs.choices]
            for choice, option in zip(term.scope, options, strict=True):
                hard[choice] = one_hot(option, len(costs.choices[choice]))
            share = prod(float(weights[c][o]) for c, o in zip(term.scope, options, strict=True))
            total += share * float(term.of(hard))
        assert float(term.of(weights)) == pytest.approx(total, rel=1e-4)


SUMS: dict[str, tuple[Any, bool]] = {  # of the channels of `a`, and whether zeros add nothing there
    "of a constant that is added": (lambda a: (a + 0.5).transpose(1, 2) @ (a + 0.5), False),
    "of a product with zeros": (lambda a: (a + 0.5).transpose(1, 2) @ (a * 3).relu(), True),
    "of a count": (lambda a: (a.sigmoid() > 0.1).float().sum(1, keepdim=True), False),
    "along another dimension of a product": (
        lambda a: ((a + 0.5) @ (a * 3).transpose(1, 2)).sum(1).sum(1, keepdim=True),
        False,
    ),
    "of squares": (lambda a: torch.linalg.vector_norm(a.tanh() * a, dim=1, keepdim=True), True),
    "of what is padded": (lambda a: torch.nn.functional.pad(a, (1, 1), value=2.0).sum(1, keepdim=True), False),
    "of pools": (lambda a: torch.nn.functional.avg_pool1d(a, 2).sum(1, keepdim=True), True),
}


@pytest.mark.parametrize("name", SUMS)
def test_channels_are_elastic_where_zeros_count_like_channels_that_are_gone(name: str) -> None:
    body, exact = SUMS[name]

    def make() -> nn.Module:
        return Model(
            lambda m, x: (body(m.a(x)), m.c(m.b(x))), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(3, 8, 1), c=nn.Conv1d(8, 2, 1)
        )

    graph, inputs = elastic(make, (2, 3, 9))
    assert len(choices(graph)) == 1 + exact
    for chosen in product(*(range(len(choice)) for choice in choices(graph))):
        assign(graph, chosen)
        for ours, expected in zip(extract(graph)(*inputs), graph(*inputs), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_bad_choices_are_named() -> None:
    graph, _ = elastic(residual, (2, 3, 8, 8))
    count = len(choices(graph))
    with pytest.raises(InputError, match=f"has {count} choices, got 1"):
        assign(graph, [0])
    with pytest.raises(InputError, match="no choice 'nothing'"):
        assign(graph, {"nothing": 0})
    with pytest.raises(InputError, match=r"options .*, got 9"):
        assign(graph, [9] * count)
    graph.parameter(choices(graph)[0].node).fill_(0.5)
    with pytest.raises(InputError, match="mixes its options"):
        extract(graph)
    with pytest.raises(InputError, match="has choices already"):
        Elastic()(graph)
    with pytest.raises(InputError, match="nothing can be made elastic"):
        Elastic(layers=["nothing"])(Graph.capture(residual().eval(), (torch.randn(2, 3, 8, 8),)))
    with pytest.raises(InputError, match="odd sizes"):
        Elastic(kernels=(2,))


def test_kernels_shrink_only_where_pads_are_left() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=1), nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=2, stride=2, bias=False),
        nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect"),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 17, 19)
    graph = Graph.capture(model, (x,))
    Elastic(widths=(), depths=False, kernels=(1, 3))(graph)
    assert [(c.name, c.labels) for c in choices(graph)] == [("0", ("5x5", "3x3")), ("1", ("5x5", "3x3", "1x1"))]
    assign(graph, [1, 2])
    torch.testing.assert_close(extract(graph)(x), graph(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "densenet121", "vit_tiny_patch16_224", "ghostnet_100", "regnetx_002"]
)
def test_published_architectures_are_elastic(name: str) -> None:
    pytest.importorskip("timm")
    model, inputs, _ = zoo.make(f"timm/{name}")
    graph = Graph.capture(model, inputs)
    Elastic(kernels=(1, 3))(graph)
    costs = Costs(graph)
    macs = costs.macs()
    for chosen in draws(graph, 2):
        assign(graph, chosen)
        small = extract(graph)
        torch.testing.assert_close(small(*inputs), graph(*inputs), rtol=1e-4, atol=1e-5)
        weights = [one_hot(option, len(choice)) for option, choice in zip(chosen, costs.choices, strict=True)]
        assert float(sum(term.of(weights) for term in macs)) == pytest.approx(cost.macs(small), rel=1e-5)

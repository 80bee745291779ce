"""What has to be removed together, per operator: the groups, and that removing from them is exact."""

from __future__ import annotations

from functools import cache
from textwrap import dedent

import prunable_attention  # noqa: F401  registers its cases
import pytest
import torch
from exactness import EXACT, Reference, difference, quarter
from prunable import CASES, conv, head
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.analysis.channels.groups import Group, groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.shuffles import gather_shuffles
from graphopt.analysis.channels.trace import Trace
from graphopt.ir.graph import Graph


@cache
def captured(name: str) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = CASES[name]
    x = torch.randn(shape)
    graph = capture(make(), x)
    for parameter in graph.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
    gather_shuffles(graph)
    return graph, x


def made(name: str) -> tuple[Graph, Tensor]:
    graph, x = captured(name)
    return graph.clone(), x


def described(found: list[Group]) -> list[str]:
    return [f"{group.name} {len(group)}{'' if len(group.free) else ' fixed'}" for group in found]


@pytest.mark.parametrize("name", CASES)
def test_the_groups_are_those_expected(name: str) -> None:
    graph, _ = made(name)
    *found, last = groups(graph)
    assert described(found) == CASES[name][2]
    assert last.fixed.all()
    assert last.why == "the model's output"


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_removal_is_exact(name: str, share: float) -> None:
    graph, x = made(name)
    trace = Trace(graph)
    found = groups(graph, trace)
    chosen = quarter(found, share)
    before = sum(p.numel() for p in graph.parameters())
    reference = Reference(graph, trace, chosen)
    remove(graph, trace, chosen)
    for batch in (x, torch.cat([x, x + 1])):
        assert difference(reference(batch), graph(batch)) < EXACT
    assert sum(p.numel() for p in graph.parameters()) < before
    again = {group.name: len(group) for group in groups(graph) if group.fixed.all()}
    assert again[found[-1].name] == len(found[-1])


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_can_be_trained(name: str) -> None:
    graph, x = made(name)
    trace = Trace(graph)
    remove(graph, trace, quarter(groups(graph, trace)))
    graph.train()
    graph(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in graph.parameters())


@pytest.mark.parametrize("name", CASES)
def test_each_group_alone_is_exact(name: str) -> None:
    """A mistake in one group could hide behind another that loses the same indices."""
    graph, x = made(name)
    for number, group in enumerate(groups(graph)):
        if not len(group.free):
            continue
        pruned = graph.clone()
        trace = Trace(pruned)
        chosen = [(groups(pruned, trace)[number], [int(group.free[-1])])]
        reference = Reference(pruned, trace, chosen)
        remove(pruned, trace, chosen)
        assert difference(reference(x), pruned(x)) < EXACT


def test_a_group_prints_what_it_runs_along() -> None:
    graph, _ = made("residual_add")
    stream, inner, output = groups(graph)
    assert str(inner) == dedent("""\
        b1: 6 channels
            b1.weight       [6, 8, 3, 3]  dimension 0
            b1.bias         [6]           dimension 0
            n.weight        [6]           dimension 0
            n.bias          [6]           dimension 0
            b2.weight       [8, 6, 3, 3]  dimension 1
            n.running_mean  [6]           dimension 0
            n.running_var   [6]           dimension 0""")
    assert stream.stream
    assert not inner.stream
    assert str(output).startswith("head.2: 5 channels, fixed by the model's output\n")


@pytest.mark.thorough
def test_a_group_at_an_offset_says_where() -> None:
    graph, _ = made("concat_at_offsets")
    first = next(group for group in groups(graph) if group.name == "a")
    assert "c.weight  [6, 16, 3, 3]  dimension 1, 4 indices from 6 to 9" in str(first)


def test_statistics_over_the_channels_are_told() -> None:
    graph, _ = made("layer_norm")
    assert str(groups(graph)[0]).endswith("statistics over these channels: norm")


def test_what_meets_the_input_is_fixed() -> None:
    model = Model(lambda m, x: m.head(m.b(m.a(x) + x)), a=conv(3, 3), b=conv(3, 4), head=head(4))
    first, second, _ = groups(capture(model, torch.randn(2, 3, 8, 8)))
    assert first.fixed.all()
    assert "meets a dimension that is fixed" in first.why
    assert len(second.free) == 4


def test_an_unknown_operator_fixes_what_it_reads() -> None:
    model = Model(lambda m, x: m.b(torch.cumsum(m.a(x), 1).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 5))
    first, _ = groups(capture(model, torch.randn(2, 6)))
    assert first.fixed.all()
    assert first.why == "cumsum, an operator that channels are not followed through"


def test_a_softmax_over_channels_fixes_them() -> None:
    model = Model(lambda m, x: m.b(m.a(x).softmax(-1)), a=nn.Linear(6, 8), b=nn.Linear(8, 5))
    first, _ = groups(capture(model, torch.randn(2, 6)))
    assert first.fixed.all()

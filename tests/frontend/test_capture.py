"""Capturing: the graph that results, and inputs and outputs of every form."""

from __future__ import annotations

import copy
from textwrap import dedent

import pytest
import torch
from capturing import Nested, same, small
from torch import Tensor, nn

from graphopt.ir.graph import Graph

# ---- The graph ------------------------------------------------------------------------------------------------------


def test_a_small_network_reads_like_its_source() -> None:
    model, x = small(), torch.randn(1, 3, 6, 6)
    graph = Graph.capture(model, x)
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 3, 6, 6])
          %0 = conv2d(input_1, f32[4, 3, 3, 3], f32[4], padding=[1, 1]) : f32[N, 4, 6, 6]  # 0
          %1 = batch_norm(%0, f32[4], f32[4], f32[4], f32[4], training=False, momentum=0.1, eps=1e-05, cudnn_enabled=False) : f32[N, 4, 6, 6]  # 1
          %2 = relu(%1) : f32[N, 4, 6, 6]  # 2
          %3 = flatten(%2, start_dim=1) : f32[N, 144]  # 3
          %4 = linear(%3, f32[5, 144], f32[5]) : f32[N, 5]  # 4
          return %4""")  # noqa: E501
    assert (graph.input_names, graph.output_names, graph.notes) == (["input"], ["output"], [])
    assert [graph.site(n) for n in graph.calls()] == ["0", "1", "2", "3", "4"]
    for batch in (1, 2, 7):
        same(graph, model, torch.randn(batch, 3, 6, 6))


def test_the_example_is_the_callers_own_detached_and_copied() -> None:
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    graph = Graph.capture(small(), x)
    (kept,) = graph.example.tensors()
    assert torch.equal(kept, x)
    assert not kept.requires_grad
    assert kept.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("returns", "names"),
    [
        ("one", ["output"]),
        ("dict", ["y", "more_0", "more_1_0"]),
        ("namedtuple", ["mean", "deviation"]),
        ("dataclass", ["scores", "parts_0", "parts_1"]),
        ("clash", ["x_1", "extra", "output"]),
        ("same", ["output_0", "output_1", "output_2"]),
    ],
)
def test_nested_inputs_and_outputs_keep_their_structure_and_get_names(returns: str, names: list[str]) -> None:
    model = Nested(returns).eval()
    x, extra, mask = torch.randn(2, 3), {"shift": (torch.randn(2, 3), 7)}, torch.ones(2, 3)
    graph = Graph.capture(model, (x, extra, 2.0), {"mask": mask})
    assert graph.input_names == ["x", "extra_shift_0", "mask"]
    assert graph.output_names == names
    same(graph, model, x, extra, 2.0, mask=mask)
    three = {"shift": (torch.randn(3, 3), 7)}
    same(graph, model, torch.randn(3, 3), three, 2.0, mask=torch.randn(3, 3))
    assert len(graph.inputs) == 3
    assert len(graph.placeholders) == 5


def test_keywords_may_come_in_any_order_and_positional_ones_by_name() -> None:
    model = Nested("one").eval()
    x, extra, mask = torch.randn(2, 3), {"shift": [torch.randn(2, 3)]}, torch.rand(2, 3)
    graph = Graph.capture(model, (), {"mask": mask, "extra": extra, "x": x})
    same(graph, model, mask=mask, extra=extra, x=x)
    same(graph, model, x=x, mask=mask, extra=extra)
    assert graph.input_names == ["x", "extra_shift_0", "mask"]


def test_variadic_arguments() -> None:
    class Variadic(nn.Module):
        def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
            return torch.cat([*xs, *named.values()], dim=1)

    model = Variadic().eval()
    a, b, c = torch.randn(2, 1), torch.randn(2, 2), torch.randn(2, 3)
    graph = Graph.capture(model, (a, b), {"last": c})
    assert graph.input_names == ["xs_0", "xs_1", "last"]
    same(graph, model, a, b, last=c)


# ---- Models that cannot be captured ---------------------------------------------------------------------------------


def test_deep_copies_of_the_example_are_not_needed() -> None:
    graph = Graph.capture(small(), torch.randn(1, 3, 6, 6))
    assert copy.deepcopy(graph).example is graph.example

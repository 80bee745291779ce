"""Capturing: which size is the batch, and what fixes it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from capturing import same, small
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError

# ---- The graph ------------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    def forward(self, first: Any, *more: Any) -> Any:
        for value in more:
            first = first + value
        return first


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("shapes", "free"),
    [
        ([("b", 4)], [True]),
        ([("b", 4), ("b", 4)], [True, True]),
        ([("b", 4), (4,)], [True, False]),
        ([("b", 4), ()], [True, False]),
        ([("b", 5, 4), (5, 4)], [True, False]),
        ([(), ("b", 4)], [False, True]),
    ],
)
def test_the_batch_is_found_among_several_inputs(shapes: list[tuple[Any, ...]], free: list[bool], batch: int) -> None:
    def inputs(size: int) -> list[Tensor]:
        return [torch.randn([size if s == "b" else s for s in shape]) for shape in shapes]

    model = Sum().eval()
    graph = Graph.capture(model, tuple(inputs(batch)))
    assert graph.dynamic_batch
    assert [isinstance(n.meta["val"].dim() and n.meta["val"].shape[0], torch.SymInt) for n in graph.inputs] == free
    for size in (1, 2, 5):
        same(graph, model, *inputs(size))


class Fixed(nn.Module):
    """Ways to need one batch size."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "number":
                return x.view(int(x.shape[0]), -1) * torch.ones(int(x.shape[0]), 1)
            case "even":
                return x.view(x.shape[0] // 2, 2, -1).sum(1)
            case "constant":
                return x + torch.arange(4).view(4, 1)
        return x * 2 if x.shape[0] == 4 else x * 3


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["number", "even", "constant", "branch"])
def test_a_fixed_batch_is_noted_with_the_reason(how: str) -> None:
    model, x = Fixed(how).eval(), torch.randn(4, 3)
    graph = Graph.capture(model, x)
    assert not graph.dynamic_batch
    assert graph.notes[0].startswith("the batch is fixed at 4: ")
    same(graph, model, x)
    with pytest.raises(InputError, match=re.escape("input 'x' must be f32[4, 3], got f32[2, 3]")):
        graph(torch.randn(2, 3))


def test_the_note_names_the_line() -> None:
    note = Graph.capture(Fixed("number").eval(), torch.randn(4, 3)).notes[0]
    assert re.search(
        r"uses it as a plain number at .*test_capture_batch.py:\d+: `return x.view\(int\(x.shape\[0\]\)", note
    )


def test_a_fixed_batch_on_demand() -> None:
    graph = Graph.capture(small(), torch.randn(2, 3, 6, 6), dynamic_batch=False)
    assert not graph.dynamic_batch
    assert graph.notes == []
    assert "f32[2, 3, 6, 6]" in str(graph)


# ---- Models that cannot be captured ---------------------------------------------------------------------------------


def test_groups_that_follow_the_batch_fix_it() -> None:
    class Own(nn.Module):
        """Every sample has kernels of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.Linear(3, 27)

        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            weight = self.kernels(x.mean((2, 3))).view(batch * channels, 1, 3, 3)
            y = F.conv2d(x.reshape(1, batch * channels, height, width), weight, padding=1, groups=batch * channels)
            return y.view(batch, channels, height, width)

    model, x = Own().eval(), torch.randn(4, 3, 8, 8)
    graph = Graph.capture(model, x)
    assert re.search(r"the batch is fixed at 4: the groups of the convolution 'conv2d' follow it", graph.notes[0])
    same(graph, model, x)


# ---- Checkpoints and frozen weights ---------------------------------------------------------------------------------


def test_keywords_that_forward_collects_do_not_fix_the_batch() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor, **others: Any) -> Tensor:
            return x * scale * others["mask"] + others["shift"]["by"]

    x = torch.randn(3, 4)
    graph = Graph.capture(Keywords().eval(), x, {"scale": x, "mask": x, "shift": {"by": x}})
    assert graph.dynamic_batch
    x = torch.randn(7, 4)
    assert torch.equal(graph(x, scale=x, mask=x, shift={"by": x}), x * x * x + x)

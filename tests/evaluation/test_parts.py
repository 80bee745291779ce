"""Parts of networks: every call in one, and by themselves at other widths what the pruned network computes there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.trace import Trace
from graphopt.evaluation.parts import parts
from graphopt.evaluation.resized import Branches, Resizing
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph


class Mobile(nn.Module):
    """An expansion, a depthwise layer, a gate, a projection and a sum; then a grouped convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.expand = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.gate = nn.Conv2d(32, 32, 1)
        self.project = nn.Conv2d(32, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, stride=2, groups=4)
        self.classes = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm(self.stem(x)).relu()
        b = torch.nn.functional.hardswish(self.depthwise(self.expand(a).relu()))
        b = b * torch.sigmoid(self.gate(b.mean((2, 3), keepdim=True)))
        c = self.project(b) + a
        return self.classes(self.grouped(c).relu().mean((2, 3)))  # type: ignore[no-any-return]


def resizing(model: nn.Module, *inputs: Tensor) -> tuple[Graph, Trace, Resizing]:
    graph = Graph.capture(model.eval(), inputs)
    trace = Trace(graph)
    return graph, trace, Resizing(graph, groups(graph, trace), trace)


def test_every_call_is_in_one_part_that_runtimes_compute_together() -> None:
    graph, _, _ = resizing(Mobile(), torch.randn(2, 3, 8, 8))
    found = {part.name: [graph.site(node) for node in part.nodes] for part in parts(graph)}
    assert sorted(n for part in parts(graph) for n in part.nodes) == sorted(graph.calls())
    assert list(found) == ["stem", "expand", "depthwise", "gate", "project", "grouped", "classes"]
    assert found["stem"][:2] == ["stem", "norm"]
    assert len(found["gate"]) == 3  # the layer, its sigmoid, and the product with what it gates
    assert len(found["project"]) == 2  # with the sum, whose other operand was computed before


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5])
def test_parts_have_the_shapes_that_they_have_in_the_pruned_network(share: float) -> None:
    graph, trace, resize = resizing(Mobile(), torch.randn(1, 3, 8, 8))
    found = groups(graph, trace)
    gone = [(g, range(round((1 - share) * len(g)) if len(g.free) == len(g) else 0)) for g in found]
    kept = [~np.isin(np.arange(len(group)), units) for group, units in gone]
    alone = {part.name: resize(part, kept) for part in parts(graph)}
    remove(graph, trace, gone)
    for part in parts(graph):
        mine = alone[part.name]
        assert mine is not None
        weights = [
            tuple(graph.tensor(n).shape) for node in part.nodes for n in node.all_input_nodes if graph.is_constant(n)
        ]
        assert list(mine.constants) == list(dict.fromkeys(weights)) or sorted(mine.constants) == sorted(weights)
        branch = Branches([mine])
        results = branch(*branch.example())
        assert [tuple(r.shape)[1:] for r in results] == [tuple(value(part.nodes[e]).shape)[1:] for e in mine.ends]


def test_equal_parts_have_equal_keys_and_others_have_not() -> None:
    _, _, resize = resizing(nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))), torch.randn(1, 8, 8, 8))
    first, second, third = parts(resize.graph)
    whole = resize.lengths.everything
    assert resize(first, whole).key == resize(second, whole).key  # type: ignore[union-attr]
    narrow = [
        units & (np.arange(len(units)) < 4) if g in resize.groups_of(third) else units for g, units in enumerate(whole)
    ]
    assert resize(third, narrow).key != resize(third, whole).key  # type: ignore[union-attr]


def test_a_part_with_sizes_as_numbers_is_there_as_it_is_but_not_narrower() -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).reshape(1, 288))  # type: ignore[no-any-return]

    graph, _, resize = resizing(Reshaped(), torch.randn(1, 3, 8, 8))
    first = parts(graph)[0]
    assert resize(first, resize.lengths.everything) is not None
    assert resize(first, [np.arange(len(u)) < 4 for u in resize.lengths.everything]) is None

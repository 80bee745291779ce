"""Which channels may be scaled: what is homogeneous, and that scaling free groups changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from channels import conv, named, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import capture
from torch import Tensor, nn

from graphopt.analysis.channels import ScaleGroups
from graphopt.ir.layer import Layer

UNEVEN = [
    torch.sigmoid, torch.tanh, torch.sin, torch.exp, F.silu, F.hardswish, F.gelu, lambda y: y * y, lambda y: y - 1,
    lambda y: y.softmax(1), lambda y: y.cumsum(1),
]  # fmt: skip

HOMOGENEOUS = [
    torch.relu, F.relu6, lambda y: F.leaky_relu(y, 0.2), lambda y: y * 3, lambda y: F.max_pool2d(y, 2),
    lambda y: F.avg_pool2d(y, 2), lambda y: F.interpolate(y, scale_factor=2.0), lambda y: F.pad(y, (1, 2)),
    lambda y: y.flip(2),
]  # fmt: skip


@pytest.mark.parametrize("function", UNEVEN)
def test_what_is_not_homogeneous_pins(function: Callable[[Tensor], Tensor]) -> None:
    graph, channels = traced(lambda m, x: m.b(function(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


@pytest.mark.parametrize("function", HOMOGENEOUS)
def test_what_works_inside_each_channel_does_not_pin(function: Callable[[Tensor], Tensor]) -> None:
    graph, channels = traced(lambda m, x: m.b(function(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["b"].tolist() == writes["a"].tolist()
    assert not channels.pinned[writes["a"]].any()


def test_a_scalar_added_is_not_homogeneous() -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x) + 1), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


@pytest.mark.parametrize("bounds", [(-1.0, 6.0), (1.0, 6.0)])
def test_a_clip_not_from_zero_pins(bounds: tuple[float, float]) -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x).clamp(*bounds)), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_clips_from_zero_are_listed_with_their_groups() -> None:
    graph, channels = traced(lambda m, x: m.b(F.relu6(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    assert [site.labels.tolist() for site in channels.clips] == [named(graph, channels.writes)["a"].tolist()]


class Net(nn.Module):
    """A random chain of blocks over a running value of `width` channels."""

    def __init__(self, plan: list[str], width: int) -> None:
        super().__init__()
        self.plan = plan
        self.stem = conv(3, width)
        self.layers = nn.ModuleList()
        for kind in plan:
            if kind == "concat":
                self.layers.append(nn.ModuleList([conv(width, 2), conv(width + 2, width, 1)]))
            else:
                self.layers.append(conv(width, width, groups=width if kind == "depthwise" else 1))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        for kind, layer in zip(self.plan, self.layers, strict=True):
            if kind == "concat":
                y = layer[1](torch.cat([y, layer[0](y).relu()], 1)).relu()  # type: ignore[index]
            elif kind == "residual":
                y = (y + layer(y)).relu()
            else:
                y = layer(y).relu()
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


PLANS = st.lists(st.sampled_from(["conv", "depthwise", "residual", "concat"]), max_size=5)


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@given(plan=PLANS, width=st.integers(1, 6), seed=st.integers(0, 99))
def test_scaling_a_free_group_and_undoing_it_in_its_readers_changes_nothing(
    plan: list[str], width: int, seed: int
) -> None:
    """The meaning of a group: all its writers divided by s, all its readers multiplied by s."""
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 6, 6)
    graph = capture(Net(plan, width), x)
    expected = graph(x)
    channels = ScaleGroups.of(graph)
    scale = torch.where(torch.from_numpy(channels.pinned), 1.0, torch.rand(channels.count) * 4 + 0.3)
    assert int((~channels.pinned).sum()) == channels.count - 5  # all but the head's outputs are free
    reads = {site.node: site.labels for site in channels.reads}
    for site in channels.writes:
        layer, out = Layer.of(site.node), scale[torch.from_numpy(site.labels)]
        assert layer is not None
        weight = graph.tensor(layer.weight)
        weight = weight / out.reshape(-1, *[1] * (weight.dim() - 1))
        if layer.node in reads:
            into = scale[torch.from_numpy(reads[layer.node])]
            into = into.reshape(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1).flatten(0, 1)
            weight = weight * into.reshape(*into.shape, *[1] * (weight.dim() - 2))
        graph.set_constant(layer.node, 1, weight)
        graph.set_bias(layer.node, graph.tensor(layer.bias) / out)  # type: ignore[arg-type]
    graph.refresh()
    torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@settings(max_examples=5, deadline=None)
@given(plan=PLANS, width=st.integers(1, 6))
def test_blocks_partition_the_groups(plan: list[str], width: int) -> None:
    channels = ScaleGroups.of(capture(Net(plan, width), torch.randn(2, 3, 6, 6)))
    members = np.concatenate(channels.blocks())
    assert sorted(members.tolist()) == sorted({int(g) for site in channels.writes for g in site.labels})
    assert len(set(members.tolist())) == len(members)

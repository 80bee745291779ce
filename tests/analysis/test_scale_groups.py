"""Scale groups through what networks do to channels between two layers, and why others are pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, capture
from torch import Tensor, nn

from graphopt.analysis.channels import ScaleGroups, Site
from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.labels import NONE
from graphopt.ir.graph import Graph

Function = Callable[[Tensor], Any]


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def traced(body: Callable[..., object], **parts: nn.Module) -> tuple[Graph, ScaleGroups]:
    graph = capture(Model(body, **parts), torch.randn(2, 3, 8, 8))
    return graph, ScaleGroups.of(graph)


def of(graph: Graph, sites: list[Site], name: str) -> list[int]:
    (found,) = [site.labels.tolist() for site in sites if graph.site(site.node) == name]
    return found


def between(function: Function, channels: int = 8, read: int = 8) -> tuple[list[int], list[int], ScaleGroups]:
    """Groups that the first layer writes and the second reads, with a function between them."""
    graph, found = traced(lambda m, x: m.b(function(m.a(x))), a=conv(3, channels), b=conv(read, 2))
    reads = [site.labels.tolist() for site in found.reads]
    return of(graph, found.writes, "a"), reads[0] if reads else [], found


def by_transpose(y: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def by_permute(y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.reshape(n, c // 4, 2, 2, h, w).permute(0, 3, 1, 2, 4, 5).contiguous().view(n, c, h, w)


def by_unflatten(y: Tensor) -> Tensor:
    return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def with_images_in_front(y: Tensor) -> Tensor:
    """As in the ShuffleNetV2 of Megvii: images and channels share a dimension on the way."""
    n, c, h, w = y.shape
    parts = y.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat([parts[0], parts[1]], 1)


SHUFFLES: dict[str, Function] = {
    "transpose": by_transpose, "transpose of four groups": lambda y: by_transpose(y, 4), "permute": by_permute,
    "unflatten": by_unflatten, "images in front": with_images_in_front, "relu inside": lambda y: (
        y.unflatten(1, (2, -1)).transpose(1, 2).relu().flatten(1, 2)
    ), "two": lambda y: by_transpose(by_transpose(y), 4), "halves": lambda y: torch.cat(
        [part.flatten(1, 3) for part in y.unflatten(1, (2, 2, 2)).transpose(1, 3).chunk(2, 1)], 1
    ), "list of indices": lambda y: y[:, [3, 1, 2, 0, 7, 6, 5, 4]], "flip": lambda y: y.flip(1),
    "roll": lambda y: y.roll(3, 1), "index_select": lambda y: y.index_select(1, torch.tensor([5, 1, 0, 2, 3, 7, 6, 4])),
}  # fmt: skip


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_shuffle_by_hand_takes_every_group_to_where_its_channel_goes(name: str) -> None:
    written, read, found = between(SHUFFLES[name])
    labels = torch.tensor(written).float().reshape(1, -1, 1, 1).expand(2, -1, 8, 8)
    assert read == SHUFFLES[name](labels)[0, :, 0, 0].long().tolist()
    assert len(set(written)) == 8
    assert not found.pinned[written].any()


@pytest.mark.parametrize(
    "inside",
    [
        lambda z: z.softmax(2),
        lambda z: z + z.mean(2, keepdim=True),
        lambda z: z.sigmoid(),
        lambda z: z * z,
        torch.cumsum,
    ],
    ids=["softmax", "mean", "sigmoid", "square", "sum so far"],
)
def test_what_is_computed_inside_a_shuffle_pins_its_channels(inside: Callable[..., Tensor]) -> None:
    def function(y: Tensor) -> Tensor:
        middle = y.unflatten(1, (2, -1)).transpose(1, 2)
        return (inside(middle, 2) if inside is torch.cumsum else inside(middle)).flatten(1, 2)

    written, _, found = between(function)
    assert found.pinned[written].all()


def test_the_middle_of_a_shuffle_that_is_returned_pins_its_channels() -> None:
    def body(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = m.a(x).unflatten(1, (2, -1)).transpose(1, 2)  # type: ignore[operator]
        return middle, m.b(middle.flatten(1, 2))  # type: ignore[operator]

    graph, found = traced(body, a=conv(3, 8), b=conv(8, 2))
    assert found.pinned[of(graph, found.writes, "a")].all()


def test_rows_of_a_shuffle_that_are_returned_pin_their_channels_alone() -> None:
    def body(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = m.a(x).unflatten(1, (2, -1)).unbind(1)  # type: ignore[operator]
        return first, m.b(second)  # type: ignore[operator]

    graph, found = traced(body, a=conv(3, 8), b=conv(4, 2))
    assert found.pinned[of(graph, found.writes, "a")].tolist() == [True] * 4 + [False] * 4


def test_channels_chosen_twice_are_read_twice() -> None:
    written, read, found = between(lambda y: y.index_select(1, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])), channels=4)
    assert read == [group for group in written for _ in range(2)]
    assert not found.pinned[written].any()


@pytest.mark.parametrize(
    "function",
    [lambda y: y.index_select(1, y.mean((0, 2, 3)).argsort()), lambda y: y[:, y.mean((0, 2, 3)).argsort()]],
    ids=["index_select", "index"],
)
def test_channels_chosen_while_running_are_pinned_and_fixed(function: Function) -> None:
    written, _, found = between(function)
    assert found.pinned[written].all()
    graph = capture(Model(lambda m, x: m.b(function(m.a(x))), a=conv(3, 8), b=conv(8, 2)), torch.randn(2, 3, 8, 8))
    assert all(group.fixed.all() for group in groups(graph))  # nor can they be removed


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: y.chunk(2, 1), lambda y: y.split(4, 1), lambda y: y.split([4, 4], 1), lambda y: (y[:, :4], y[:, 4:]),
        lambda y: (y.narrow(1, 0, 4), y.narrow(1, 4, 4)),
    ],
    ids=["chunk", "split", "sizes", "slice", "narrow"],
)  # fmt: skip
def test_parts_go_their_ways_and_come_together(cut: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        left, right = cut(m.a(x))
        return m.c(by_transpose(torch.cat([left, m.b(right).relu()], 1)))  # type: ignore[no-any-return, operator]

    graph, found = traced(body, a=conv(3, 8), b=conv(4, 4), c=conv(8, 2))
    a, b = of(graph, found.writes, "a"), of(graph, found.writes, "b")
    assert of(graph, found.reads, "b") == a[4:]
    assert of(graph, found.reads, "c") == [g for pair in zip(a[:4], b, strict=True) for g in pair]
    assert not found.pinned[a + b].any()


def test_a_difference_ties_its_operands() -> None:
    graph, found = traced(lambda m, x: m.c(m.a(x) - m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert of(graph, found.writes, "a") == of(graph, found.writes, "b") == of(graph, found.reads, "c")
    assert not found.pinned[of(graph, found.writes, "a")].any()


def test_of_a_quotient_the_upper_side_keeps_its_groups() -> None:
    body: Callable[..., object] = lambda m, x: m.c(m.a(x) / m.b(x))  # noqa: E731
    graph, found = traced(body, a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    assert not found.pinned[of(graph, found.writes, "a")].any()
    assert found.pinned[of(graph, found.writes, "b")].all()


def test_a_sum_along_other_dimensions_pins_both() -> None:
    """Channels of one operand are rows of the other."""
    body: Callable[..., object] = lambda m, x: m.c(m.a(x) + m.b(x).transpose(1, 2))  # noqa: E731
    graph, found = traced(body, a=conv(3, 8), b=conv(3, 8), c=conv(8, 2))
    assert found.pinned[of(graph, found.writes, "a") + of(graph, found.writes, "b")].all()


def test_channels_joined_to_rows_pin_the_rows_alone() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        rows = m.b(x).transpose(1, 2)  # type: ignore[operator]
        return m.c(torch.cat([m.a(x), rows], 1))  # type: ignore[no-any-return, operator]

    graph, found = traced(body, a=conv(3, 4), b=conv(3, 8), c=conv(12, 2))
    assert found.pinned[of(graph, found.writes, "b")].all()


def test_channels_joined_to_rows_that_are_then_split_are_not_lost() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        rows = m.b(x).transpose(1, 2)  # type: ignore[operator]
        return m.c(torch.cat([rows, m.a(x)], 1).unflatten(2, (2, 4)).flatten(2, 3))  # type: ignore[no-any-return, operator]

    graph, found = traced(body, a=conv(3, 4), b=conv(3, 8), c=conv(12, 2))
    assert found.pinned[of(graph, found.writes, "a") + of(graph, found.writes, "b")].all()


@pytest.mark.parametrize("positive", [F.relu, lambda y: y.clamp(min=0), lambda y: y.clamp_min(0.0)])
def test_a_clip_without_an_upper_end_needs_none_per_channel(positive: Function) -> None:
    written, read, found = between(positive)
    assert read == written
    assert found.clips == []


class Affine(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, y: Tensor) -> Tensor:
        return y * 2 + self.shift


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1, 8, 8, 8)])
def test_an_addend_for_each_channel_is_divided_with_it(shape: tuple[int, ...]) -> None:
    graph, found = traced(lambda m, x: m.b(m.shift(m.a(x))), a=conv(3, 8), shift=Affine(*shape), b=conv(8, 2))
    (site,) = found.parameters
    assert site.labels.tolist() == of(graph, found.writes, "a") == of(graph, found.reads, "b")
    assert not found.pinned[site.labels].any()


@pytest.mark.parametrize("shape", [(), (1,), (8, 8), (1, 1, 1), (1, 8, 8), (2, 8, 8, 8)])
def test_an_addend_without_an_element_for_each_channel_pins(shape: tuple[int, ...]) -> None:
    body: Callable[..., object] = lambda m, x: m.b(m.shift(m.a(x)))  # noqa: E731
    graph, found = traced(body, a=conv(3, 8), shift=Affine(*shape), b=conv(8, 2))
    pinned = found.pinned[of(graph, found.writes, "a")]
    assert pinned.all() != (len(shape) == 4)  # of the last, images have shifts of their own, and channels, too


def test_batch_norm_between_layers_passes_groups_and_names_its_mean_and_bias() -> None:
    graph, found = traced(lambda m, x: m.b(m.norm(m.a(x).relu())), a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(8, 2))
    written = of(graph, found.writes, "a")
    assert written == of(graph, found.reads, "b")
    assert [site.labels.tolist() for site in found.parameters] == [written, written]
    assert {str(site.node.args[site.position]) for site in found.parameters} == {"norm_bias", "norm_running_mean"}


@pytest.mark.parametrize(
    "norm", [lambda y: F.batch_norm(y, None, None, training=True), F.instance_norm, lambda y: F.group_norm(y, 2)],
    ids=["batch norm in training", "instance norm", "group norm"],
)  # fmt: skip
def test_statistics_of_the_input_pin(norm: Function) -> None:
    written, _, found = between(norm)
    assert found.pinned[written].all()


REASONS: list[tuple[Function, str]] = [
    (torch.sigmoid, "sigmoid, which does not keep a factor in front of its input"),
    (lambda y: y + 1, "add, which adds what has no factor for each channel"),
    (lambda y: y.softmax(1), "softmax, which does not keep a factor in front of its input"),
    (lambda y: F.batch_norm(y, None, None, training=True), "batch_norm, which takes statistics of the batch"),
    (lambda y: y.unflatten(1, (2, 4)).sum(1).repeat(1, 2, 1, 1), "which does not keep a factor in front of its input"),
    (lambda y: y.unflatten(1, (2, 4)).mean(1).repeat(1, 2, 1, 1), "where they lie over several dimensions"),
]


@pytest.mark.parametrize(("function", "reason"), REASONS)
def test_a_pinned_group_says_why(function: Function, reason: str) -> None:
    written, _, found = between(function)
    assert {found.why[group].endswith(reason) for group in written} == {True}


def test_outputs_say_so_and_free_groups_say_nothing() -> None:
    graph, found = traced(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 2))
    assert {found.why[group] for group in of(graph, found.writes, "b")} == {"the model's output"}
    assert not set(of(graph, found.writes, "a")) & set(found.why)


def test_the_models_input_has_no_groups_wherever_it_goes() -> None:
    body: Callable[..., object] = lambda m, x: m.c(F.relu6(by_transpose(torch.cat([x, m.a(x)], 1))))  # noqa: E731
    graph, found = traced(body, a=conv(3, 3), c=conv(6, 2))
    a = of(graph, found.writes, "a")
    assert of(graph, found.reads, "c") == [NONE, a[0], NONE, a[1], NONE, a[2]]
    assert not found.pinned[a].any()

"""Which channels belong together: PyTorch modules whose ties are known by their construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from channels import conv, named, traced
from torch import Tensor, nn

from graphopt.analysis.channels.labels import NONE


def test_a_chain_ties_each_output_to_the_next_input() -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 4), b=conv(4, 5))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert writes["a"].tolist() == [0, 1, 2, 3]
    assert reads["b"].tolist() == [0, 1, 2, 3]
    assert "a" not in reads  # the model's input is not a layer's
    assert not channels.pinned[writes["a"]].any()
    assert channels.pinned[writes["b"]].all()  # the model's output


def test_a_sum_ties_channel_by_channel() -> None:
    graph, channels = traced(
        lambda m, x: m.c((lambda y: y + m.b(y))(m.a(x).relu())), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2)
    )
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert writes["a"].tolist() == writes["b"].tolist() == reads["b"].tolist() == reads["c"].tolist()
    assert len(set(writes["a"].tolist())) == 4
    assert not channels.pinned[writes["a"]].any()


def test_a_sum_with_a_broadcast_pins_both() -> None:
    graph, channels = traced(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, 4), b=conv(3, 1), c=conv(4, 2))
    writes = named(graph, channels.writes)
    assert channels.pinned[writes["a"]].all()
    assert channels.pinned[writes["b"]].all()


def test_a_sum_with_the_models_input_pins() -> None:
    graph, channels = traced(lambda m, x: m.c(m.a(x) + x), a=conv(3, 3), c=conv(3, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_a_concatenation_offsets_its_parts() -> None:
    graph, channels = traced(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 4), b=conv(3, 2), c=conv(6, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["c"].tolist() == [*writes["a"], *writes["b"]]


def test_a_concatenation_along_height_ties_its_parts() -> None:
    graph, channels = traced(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["c"].tolist() == writes["a"].tolist() == writes["b"].tolist()


def test_the_inputs_channels_in_a_concatenation_have_no_group() -> None:
    graph, channels = traced(lambda m, x: m.c(torch.cat([x, m.a(x)], 1)), a=conv(3, 4), c=conv(7, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert not channels.pinned[writes["a"]].any()
    assert reads["c"][3:].tolist() == writes["a"].tolist()
    assert reads["c"][:3].tolist() == [NONE] * 3


def test_the_same_value_twice_in_a_concatenation_gives_its_channels_two_readers() -> None:
    graph, channels = traced(lambda m, x: m.c((lambda y: torch.cat([y, y], 1))(m.a(x))), a=conv(3, 4), c=conv(8, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["c"].tolist() == [*writes["a"], *writes["a"]]


@pytest.mark.parametrize("cut", [lambda y: y.split([1, 3], 1), lambda y: (y[:, :1], y[:, 1:])])
def test_pieces_of_a_value_keep_their_labels(cut: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        first, second = cut(m.a(x))
        return m.b(first) + m.c(second)  # type: ignore[no-any-return, operator]

    graph, channels = traced(body, a=conv(3, 4), b=conv(1, 2), c=conv(3, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["b"].tolist() == writes["a"][:1].tolist()
    assert reads["c"].tolist() == writes["a"][1:].tolist()
    assert not channels.pinned[writes["a"]].any()


def test_chunks_swapped_and_joined_arrive_swapped() -> None:
    graph, channels = traced(lambda m, x: m.b(torch.cat(m.a(x).chunk(2, 1)[::-1], 1)), a=conv(3, 4), b=conv(4, 2))
    assert named(graph, channels.reads)["b"].tolist() == named(graph, channels.writes)["a"][[2, 3, 0, 1]].tolist()


def test_channel_shuffle_is_read_off_the_operator() -> None:
    graph, channels = traced(lambda m, x: m.b(F.channel_shuffle(m.a(x), 2)), a=conv(3, 4), b=conv(4, 2))
    assert named(graph, channels.reads)["b"].tolist() == named(graph, channels.writes)["a"][[0, 2, 1, 3]].tolist()


def test_flatten_gives_each_channel_as_many_features_as_pixels() -> None:
    graph, channels = traced(lambda m, x: m.fc(m.a(x).relu().flatten(1)), 2, 3, 2, 3, a=conv(3, 4), fc=nn.Linear(24, 5))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["fc"].tolist() == np.repeat(writes["a"], 6).tolist()


def test_pooling_and_flatten_lead_into_a_linear_layer() -> None:
    graph, channels = traced(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)), a=conv(3, 4), fc=nn.Linear(4, 5)
    )
    assert named(graph, channels.reads)["fc"].tolist() == named(graph, channels.writes)["a"].tolist()


@pytest.mark.parametrize("mean", [lambda y: y.mean((2, 3)), lambda y: y.mean((2, 3), keepdim=True).flatten(1)])
def test_means_over_the_image_keep_channels(mean: Callable[[Tensor], Tensor]) -> None:
    graph, channels = traced(lambda m, x: m.fc(mean(m.a(x))), a=conv(3, 4), fc=nn.Linear(4, 5))
    assert named(graph, channels.reads)["fc"].tolist() == named(graph, channels.writes)["a"].tolist()


def test_a_mean_over_channels_pins() -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(3, 4), b=conv(1, 5))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_rows_left_by_a_mean_over_channels_are_not_channels() -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x).mean(1)), a=conv(3, 8), b=nn.Conv1d(8, 2, 1))
    assert "b" not in named(graph, channels.reads)
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_of_two_factors_one_keeps_its_channels() -> None:
    graph, channels = traced(lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 2))
    writes = named(graph, channels.writes)
    assert sorted([channels.pinned[writes["a"]].all(), channels.pinned[writes["b"]].all()]) == [False, True]


def test_tokens_are_followed_through_a_permutation() -> None:
    graph, channels = traced(lambda m, x: m.fc(m.a(x).flatten(2).transpose(1, 2)), a=conv(3, 4), fc=nn.Linear(4, 5))
    assert named(graph, channels.reads)["fc"].tolist() == named(graph, channels.writes)["a"].tolist()


def test_pixels_as_features_are_not_channels() -> None:
    graph, channels = traced(lambda m, x: m.fc(m.a(x)), a=conv(3, 4), fc=nn.Linear(8, 5))
    assert "fc" not in named(graph, channels.reads)
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_a_shortcut_padded_with_zero_channels_lines_up() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.c(m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))  # type: ignore[no-any-return, operator]

    graph, channels = traced(body, a=conv(3, 4), b=conv(4, 6, stride=2), c=conv(6, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert writes["b"][1:5].tolist() == writes["a"].tolist()
    assert not set(writes["b"][[0, 5]]) & set(writes["a"])
    assert reads["c"].tolist() == writes["b"].tolist()
    assert NONE not in reads["c"]


def test_zero_channels_read_directly_have_groups_that_no_layer_writes() -> None:
    graph, channels = traced(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 0, 2))), a=conv(3, 4), b=conv(6, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["b"][:4].tolist() == writes["a"].tolist()
    assert not set(reads["b"][4:]) & {*writes["a"], *writes["b"], NONE}


def test_padding_with_another_value_pins() -> None:
    graph, channels = traced(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=1.0)), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_a_depthwise_layer_writes_groups_of_its_own_and_reads_those_in_front() -> None:
    graph, channels = traced(
        lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(3, 4), b=conv(4, 4, groups=4), c=conv(4, 2)
    )
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["b"].tolist() == writes["a"].tolist()
    assert reads["c"].tolist() == writes["b"].tolist()
    assert not set(writes["a"]) & set(writes["b"])


def test_a_gate_is_pinned_and_what_it_gates_is_not() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        gate = m.expand(m.squeeze(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()  # type: ignore[operator]
        return m.c(y * gate)  # type: ignore[no-any-return, operator]

    graph, channels = traced(body, a=conv(3, 4), squeeze=conv(4, 2, 1), expand=conv(2, 4, 1), c=conv(4, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["c"].tolist() == reads["squeeze"].tolist() == writes["a"].tolist()
    assert not channels.pinned[writes["a"]].any()
    assert not channels.pinned[writes["squeeze"]].any()
    assert channels.pinned[writes["expand"]].all()


def test_a_weight_computed_by_the_graph_pins_what_it_reads() -> None:
    graph, channels = traced(
        lambda m, x: F.conv2d(x, m.a(x).mean(0).relu().reshape(4, 1, 8, 8)[:, [0, 0, 0]]), a=conv(3, 4)
    )
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_a_single_channel_is_followed_like_many() -> None:
    graph, channels = traced(lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2.0)), a=conv(3, 1), b=conv(1, 2))
    writes, reads = named(graph, channels.writes), named(graph, channels.reads)
    assert reads["b"].tolist() == writes["a"].tolist()
    assert not channels.pinned[writes["a"]].any()


def test_channels_returned_next_to_a_reader_are_pinned() -> None:
    graph, channels = traced(lambda m, x: (lambda y: (m.b(y), y))(m.a(x)), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()


def test_a_split_piece_that_is_returned_pins_only_itself() -> None:
    def body(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = m.a(x).split(2, 1)  # type: ignore[operator]
        return first, m.b(second)  # type: ignore[operator]

    graph, channels = traced(body, a=conv(3, 4), b=conv(2, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].tolist() == [True, True, False, False]


def test_a_mean_over_batches_pins() -> None:
    graph, channels = traced(lambda m, x: m.b(m.a(x).softmax(0)), a=conv(3, 4), b=conv(4, 2))
    assert channels.pinned[named(graph, channels.writes)["a"]].all()

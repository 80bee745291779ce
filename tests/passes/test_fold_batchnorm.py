"""Batch norm disappears into the layer beside it; PyTorch's own modules say what must come out."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Model, capture, check, names, randomised
from torch import nn

from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify

FOLD = FoldBatchNorm()


def norm(*parts: nn.Module) -> nn.Module:
    return randomised(nn.Sequential(*parts))


@pytest.mark.parametrize("groups", [1, 4])
def test_conv_bn_relu_reads_as_conv_relu(groups: int) -> None:
    model = norm(nn.Conv2d(4, 8, 3, groups=groups, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    graph = check(model, torch.randn(2, 4, 8, 8), by=FOLD, changes=1)
    assert str(graph) == dedent(f"""\
        graph(input_1: f32[N, 4, 8, 8])
          %0 = conv2d(input_1, f32[8, {4 // groups}, 3, 3], f32[8], padding=[1, 1]{f", groups={groups}" * (groups > 1)}) : f32[N, 8, 8, 8]  # 0
          %1 = relu(%0) : f32[N, 8, 8, 8]  # 2
          return %1""")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("layer", "bn", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, dilation=2, padding="same"), nn.BatchNorm2d(6), (2, 4, 8, 8)),
        (nn.Conv3d(2, 4, 3, groups=2), nn.BatchNorm3d(4), (2, 2, 5, 5, 5)),
        (nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), (2, 6, 6, 6)),
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), (2, 4, 6, 6)),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), (2, 2, 4, 4, 4)),
        (nn.Linear(5, 7), nn.BatchNorm1d(7), (3, 5)),
        (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), (3, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_layer_takes_the_norm_behind_it(layer: nn.Module, bn: nn.Module, shape: tuple[int, ...]) -> None:
    graph = check(norm(layer, bn), torch.randn(shape), by=FOLD, changes=1)
    assert "batch_norm" not in str(graph)
    assert len(graph.calls()) == 1


def test_a_near_zero_variance_is_kept_from_infinity_by_eps() -> None:
    model = norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].running_var.fill_(1e-35)
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1)
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())


def test_a_large_eps_counts() -> None:
    check(norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1.0)), torch.randn(2, 3, 6, 6), by=FOLD, changes=1)


def test_a_conv_used_twice_gets_a_weight_per_norm() -> None:
    model = Model(
        lambda m, x: m.second(m.conv(m.first(m.conv(x)).relu())),
        conv=nn.Conv2d(4, 4, 3, padding=1), first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4),
    )  # fmt: skip
    graph = check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=2)
    assert names(graph) == ["conv2d", "relu", "conv2d"]


def test_a_weight_shared_with_an_unnormed_layer_keeps_its_other_use() -> None:
    model = Model(lambda m, x: (m.bn(m.conv(x)), m.conv(x * 2)), conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4))
    graph = check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)
    assert names(graph).count("conv2d") == 2


def test_a_conv_with_a_second_reader_is_left_alone() -> None:
    model = Model(
        lambda m, x: (lambda y: (m.bn(y).relu(), y.sigmoid()))(m.conv(x)), conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)
    )
    graph = check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)
    assert names(graph) == ["conv2d", "mul", "add", "relu", "sigmoid"]
    assert torch.equal(graph.state_dict()["conv.weight"], model.conv.weight)


def test_a_conv_that_is_also_an_output_is_left_alone() -> None:
    model = Model(lambda m, x: (lambda y: (m.bn(y), y))(m.conv(x)), conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4))
    check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(4, 6, 1)])
def test_the_norm_in_front_of_an_unpadded_conv_folds(layer: nn.Module) -> None:
    graph = check(norm(nn.BatchNorm2d(4), layer), torch.randn(2, 4, 6, 6), by=FOLD, changes=1)
    assert names(graph) == ["conv2d"]


def test_the_norm_in_front_of_a_linear_layer_folds() -> None:
    graph = check(norm(nn.BatchNorm1d(5), nn.Linear(5, 3)), torch.randn(4, 5), by=FOLD, changes=1)
    assert names(graph) == ["linear"]


def test_the_norm_in_front_of_a_padded_conv_is_spelled_out() -> None:
    graph = check(norm(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)), torch.randn(2, 4, 6, 6), by=FOLD, changes=1)
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 4, 6, 6])
          %0 = mul(input_1, f32[4, 1, 1]) : f32[N, 4, 6, 6]  # 0
          %1 = add(%0, f32[4, 1, 1]) : f32[N, 4, 6, 6]  # 0
          %2 = conv2d(%1, f32[6, 4, 3, 3], f32[6], padding=[1, 1]) : f32[N, 6, 6, 6]  # 1
          return %2""")


@pytest.mark.parametrize("padding", ["same", (0, 1)])
def test_padding_in_any_spelling_counts(padding: str | tuple[int, int]) -> None:
    graph = check(
        norm(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=padding)), torch.randn(2, 4, 6, 6), by=FOLD, changes=1
    )
    assert names(graph)[:2] == ["mul", "add"]


def test_a_norm_without_shift_folds_into_a_padded_conv() -> None:
    model = norm(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    model[0].running_mean.zero_()
    nn.init.zeros_(model[0].bias)
    assert names(check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)) == ["conv2d"]


def test_a_norm_in_front_of_two_convs_folds_into_both() -> None:
    model = Model(
        lambda m, x: (lambda y: m.a(y) + m.b(y))(m.bn(x)),
        bn=nn.BatchNorm2d(4),
        a=nn.Conv2d(4, 6, 3),
        b=nn.Conv2d(4, 6, 3),
    )
    graph = check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)
    assert names(graph) == ["conv2d", "conv2d", "add"]


def test_a_norm_with_one_reader_that_is_no_layer_is_spelled_out() -> None:
    model = Model(lambda m, x: (lambda y: m.a(y) + y)(m.bn(x)), bn=nn.BatchNorm2d(4), a=nn.Conv2d(4, 4, 1))
    assert names(check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1)) == ["mul", "add", "conv2d", "add"]


def test_the_norm_in_front_of_a_transposed_conv_is_spelled_out() -> None:
    model = norm(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3))
    assert names(check(model, torch.randn(2, 4, 6, 6), by=FOLD, changes=1))[:2] == ["mul", "add"]


@pytest.mark.parametrize(("bn", "shape"), [(nn.BatchNorm1d(4), (3, 4)), (nn.BatchNorm1d(4), (3, 4, 5)),
                                           (nn.BatchNorm3d(4, affine=False), (2, 4, 3, 3, 3))])  # fmt: skip
def test_a_norm_alone_becomes_one_multiply_and_one_add(bn: nn.Module, shape: tuple[int, ...]) -> None:
    assert names(check(norm(bn, nn.ReLU()), torch.randn(shape), by=FOLD, changes=1)) == ["mul", "add", "relu"]


def test_a_norm_of_images_alone_becomes_a_depthwise_conv_where_that_is_asked_for() -> None:
    model = norm(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    graph = check(model, torch.randn(2, 4, 6, 6), by=FoldBatchNorm(depthwise=True), changes=1)
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 4, 6, 6])
          %0 = relu(input_1) : f32[N, 4, 6, 6]  # 0
          %1 = conv2d(%0, f32[4, 1, 1, 1], f32[4], groups=4) : f32[N, 4, 6, 6]  # 1
          %2 = relu(%1) : f32[N, 4, 6, 6]  # 2
          return %2""")
    tokens = norm(nn.ReLU(), nn.BatchNorm1d(4))
    assert names(check(tokens, torch.randn(3, 4, 5), by=FoldBatchNorm(depthwise=True)))[1:] == ["mul", "add"]


def test_a_norm_over_the_tokens_of_a_linear_layer_is_not_folded_into_its_features() -> None:
    model = norm(nn.Linear(5, 6), nn.BatchNorm1d(4))  # [N, 4, 5] -> [N, 4, 6]: the norm counts dimension 1
    assert names(check(model, torch.randn(3, 4, 5), by=FOLD, changes=1)) == ["linear", "mul", "add"]


def test_two_norms_in_a_row_both_fold() -> None:
    model = norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    assert names(check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=2)) == ["conv2d"]


@pytest.mark.parametrize("count", [2, 3])
def test_norms_of_images_in_a_row_all_fold_where_depthwise_convolutions_are_asked_for(count: int) -> None:
    model = norm(*(nn.BatchNorm2d(5) for _ in range(count)))
    assert names(check(model, torch.randn(2, 5, 3, 4), by=FoldBatchNorm(depthwise=True), changes=count)) == ["conv2d"]


def test_a_norm_between_two_layers_goes_to_the_one_before() -> None:
    model = norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1))
    graph = check(model, torch.randn(2, 3, 8, 8), by=FOLD, changes=1)
    assert torch.equal(graph.state_dict()["2.weight"], model[2].weight)


def test_a_norm_that_uses_the_batch_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    graph = capture(model, torch.randn(4, 3, 6, 6))
    assert FOLD(graph) == []
    assert "batch_norm" in str(graph)


def test_a_norm_in_training_mode_stays() -> None:
    graph = capture(norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(4, 3, 6, 6)).train()
    assert FOLD(graph) == []


def test_changes_name_the_modules() -> None:
    graph = capture(
        Model(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6)
    )
    assert FOLD(graph) == [("bn", "folded into conv in front of it")]


def test_folded_weights_stay_trainable_under_their_names() -> None:
    graph = check(norm(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), torch.randn(2, 3, 6, 6), by=FOLD, changes=1)
    assert sorted(name for name, _ in graph.named_parameters()) == ["0.bias", "0.weight"]


def test_the_moments_of_folded_channels_are_those_of_the_norm() -> None:
    model = norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1)
    mean, deviation = graph.calls()[0].meta["moments"]
    assert torch.equal(mean, model[1].bias)
    torch.testing.assert_close(deviation, model[1].weight.abs(), rtol=1e-4, atol=0)


def test_a_channel_that_never_moved_in_training_has_no_deviation() -> None:
    model = norm(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].running_var[2] = 1e-35
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1)
    assert float(graph.calls()[0].meta["moments"][1][2]) < 1e-10


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_norm_that_is_written_out_leaves_its_moments_on_what_stands_for_it(depthwise: bool) -> None:
    model = norm(nn.ReLU(), nn.BatchNorm2d(3), nn.Sigmoid())
    fold = FoldBatchNorm(depthwise=depthwise)
    graph = check(model, torch.randn(2, 3, 6, 6), by=fold, changes=1)
    mean, _ = graph.calls()[-2].meta["moments"]
    assert torch.equal(mean, model[1].bias)


def test_a_norm_that_moves_behind_leaves_its_statistics_on_what_it_read() -> None:
    model = norm(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    graph = check(model, torch.randn(2, 3, 6, 6), by=FOLD, changes=1)
    mean, deviation = graph.calls()[0].meta["moments"]
    assert torch.equal(mean, model[1].running_mean)
    torch.testing.assert_close(deviation, model[1].running_var.sqrt())


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), bias=st.booleans(), transposed=st.booleans(), stride=st.integers(1, 2),
    padding=st.integers(0, 2), kernel=st.integers(1, 3), in_front=st.booleans(),
)  # fmt: skip
def test_any_convolution_and_norm_compute_the_same(
    groups: int, bias: bool, transposed: bool, stride: int, padding: int, kernel: int, in_front: bool
) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(4, 8, kernel, stride=stride, padding=min(padding, kernel - 1), groups=groups, bias=bias)
    parts = [nn.BatchNorm2d(4), conv] if in_front else [conv, nn.BatchNorm2d(8)]
    check(norm(*parts), torch.randn(2, 4, 6, 6), by=FOLD, changes=1)


class Frozen(nn.Module):
    """As in networks for detection: statistics and parameters are buffers."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(channels) + 0.5)
        self.register_buffer("shift", torch.randn(channels))
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.reshape(self.shape) + self.shift.reshape(self.shape)


@pytest.mark.parametrize(
    ("layer", "frozen", "shape"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), Frozen(6, (1, 6, 1, 1)), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, groups=2), Frozen(6, (6, 1, 1)), (2, 4, 8, 8)),
        (nn.Conv1d(4, 6, 3), Frozen(6, (1, 6, 1)), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), Frozen(6, (1, 6, 1, 1)), (2, 4, 5, 5)),
        (nn.Linear(5, 7, bias=False), Frozen(7, (7,)), (3, 4, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_frozen_norm_is_folded_as_one_that_is_not(
    layer: nn.Module, frozen: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(layer, frozen).eval()
    graph = capture(model, torch.randn(shape))
    Simplify()(graph)
    before = graph(*graph.example.args)
    assert len(FOLD(graph)) == 1
    graph.refresh()
    assert len(graph.calls()) == 1
    torch.testing.assert_close(graph(*graph.example.args), before, rtol=1e-5, atol=1e-5)
    assert FOLD(graph) == []


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.frozen(m.conv(x)) + m.conv(x),  # the convolution has another reader
        lambda m, x: (y := m.conv(x) * m.frozen.scale.reshape(6, 1, 1)) + m.frozen.shift.reshape(6, 1, 1) + y,
        lambda m, x: m.conv(x) * m.frozen.scale + m.frozen.shift,  # one number for each column
        lambda m, x: m.frozen(m.conv(x)[:, :, :1, :1].expand(2, 6, 6, 6)),
        lambda m, x: m.frozen(x),
    ],
)
def test_what_is_no_frozen_norm_behind_a_layer_alone_stays(body: Callable[..., torch.Tensor]) -> None:
    model = Model(body, conv=nn.Conv2d(6, 6, 1), frozen=Frozen(6, (6, 1, 1))).eval()
    graph = capture(model, torch.randn(2, 6, 6, 6))
    Simplify()(graph)
    before = graph(*graph.example.args)
    assert FOLD(graph) == []
    assert torch.equal(graph(*graph.example.args), before)


def test_what_another_dimension_normalizes_is_folded_at_once_where_it_is_one_channel() -> None:
    model = randomised(nn.Sequential(nn.Linear(9, 1), nn.BatchNorm2d(1))).eval()
    graph = capture(model, torch.randn(2, 1, 3, 9))
    x = torch.randn(2, 1, 3, 9)
    FoldBatchNorm()(graph)
    graph.refresh()
    torch.testing.assert_close(graph(x), model(x), atol=1e-5, rtol=1e-5)
    assert [str(node.target) for node in graph.calls()] == ["aten.linear.default"]
    assert FoldBatchNorm()(graph) == []

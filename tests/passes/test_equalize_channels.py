"""Equalization: the ranges really meet, and the PyTorch model's outputs stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rewriting import Model, capture, check, names
from torch import Tensor, nn

from graphopt.analysis.channels import ScaleGroups
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.equalization.equalize_channels import EqualizeChannels

EQUALIZE = EqualizeChannels()
EXACT = 1e-5
Body = Callable[..., object]


def uneven(model: nn.Module) -> nn.Module:
    """Weight ranges that differ a hundredfold between channels, on the output side and on the input side."""
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                continue
            out = module.weight.shape[0]
            module.weight.mul_(
                torch.logspace(-1, 1, out)[torch.randperm(out)].reshape(-1, *[1] * (module.weight.dim() - 1))
            )
    return model


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]


def ranges(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r1 and r2 of every group, by brute force over the groups, and which groups are pinned."""
    channels = ScaleGroups.of(graph)
    written, read = np.zeros(channels.count), np.zeros(channels.count)
    for site in channels.writes:
        layer = Layer.of(site.node)
        assert layer is not None
        weight = layer.canonical(graph.tensor(layer.weight)).abs()
        for channel, group in enumerate(site.labels):
            written[group] = max(written[group], float(weight[channel].max()))
    for site in channels.reads:
        layer = Layer.of(site.node)
        assert layer is not None
        weight = layer.canonical(graph.tensor(layer.weight)).abs()
        size = weight.shape[1]
        rows = weight.shape[0] // layer.groups
        for channel, group in enumerate(site.labels):
            part = channel // size
            if group >= 0:
                read[group] = max(read[group], float(weight[part * rows : (part + 1) * rows, channel % size].max()))
    return written, read, channels.pinned


def equalized(model: nn.Module, *inputs: Tensor, free: int | None = None) -> Graph:
    """`check` for this pass, and that r1 == r2 for every free group that is both written and read."""
    return made_even(uneven(model), *inputs, free=free)


def made_even(model: nn.Module, *inputs: Tensor, free: int | None = None) -> Graph:
    graph = check(model, *inputs, by=EQUALIZE, tolerance=EXACT)
    written, read, pinned = ranges(graph)
    both = ~pinned & (written > 0) & (read > 0)
    assert np.allclose(written[both], read[both], rtol=1e-2)
    assert free is None or int(both.sum()) == free
    return graph


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity, "relu": nn.ReLU, "leaky relu": lambda: nn.LeakyReLU(0.2), "one prelu": nn.PReLU,
    "prelu per channel": lambda: nn.PReLU(6), "relu6": nn.ReLU6, "hardtanh from zero": lambda: nn.Hardtanh(0.0, 0.8),
    "max pool": lambda: nn.MaxPool2d(2), "average pool": lambda: nn.AvgPool2d(2), "dropout": nn.Dropout,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_two_convs_meet_across(name: str) -> None:
    equalized(nn.Sequential(conv(3, 6), ACTIVATIONS[name](), conv(6, 4)), torch.randn(2, 3, 8, 8), free=6)


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "silu", "hard swish", "tanh", "clamp from -1", "add one"])
def test_what_is_not_homogeneous_keeps_the_layers_apart(name: str) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "sigmoid": torch.sigmoid, "softmax": lambda y: y.softmax(1), "silu": F.silu, "hard swish": F.hardswish,
        "tanh": torch.tanh, "clamp from -1": lambda y: y.clamp(-1, 6), "add one": lambda y: y + 1,
    }  # fmt: skip
    model = Model(lambda m, x: m.b(functions[name](m.a(x))), a=conv(3, 6), b=conv(6, 4))
    check(uneven(model), torch.randn(2, 3, 8, 8), by=EQUALIZE, changes=0)


def test_relu6_gets_an_end_per_channel() -> None:
    graph = equalized(nn.Sequential(conv(3, 6), nn.ReLU6(), conv(6, 4)), torch.randn(2, 3, 8, 8) * 20)
    assert names(graph) == ["conv2d", "relu", "clamp", "conv2d"]
    ends = graph.tensor(graph.calls(torch.ops.aten.clamp.Tensor)[0].args[2])
    assert ends.shape == (6, 1, 1)
    assert float(ends.max() / ends.min()) > 2


@pytest.mark.thorough
def test_relu6_in_front_of_a_linear_layer_keeps_its_ends_along_the_features() -> None:
    equalized(nn.Sequential(nn.Linear(3, 6), nn.ReLU6(), nn.Linear(6, 4)), torch.randn(4, 3) * 20, free=6)


@pytest.mark.thorough
def test_relu6_over_tokens_keeps_its_ends_along_the_features() -> None:
    equalized(nn.Sequential(nn.Linear(3, 6), nn.ReLU6(), nn.Linear(6, 4)), torch.randn(4, 5, 3) * 20, free=6)


def test_a_depthwise_layer_is_scaled_from_both_sides() -> None:
    model = nn.Sequential(conv(3, 6), nn.ReLU6(), conv(6, 6, groups=6), nn.ReLU6(), conv(6, 4, 1))
    equalized(model, torch.randn(2, 3, 8, 8) * 10, free=12)


def test_a_depthwise_layer_with_a_multiplier() -> None:
    equalized(
        nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 8, groups=4), nn.ReLU(), conv(8, 2)),
        torch.randn(2, 3, 8, 8),
        free=12,
    )


@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_convs(groups: int) -> None:
    model = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 6, groups=groups), nn.ReLU(), conv(6, 4))
    equalized(model, torch.randn(2, 3, 8, 8), free=12)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convs(groups: int) -> None:
    up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=groups)
    model = nn.Sequential(conv(3, 6), nn.ReLU(), up, nn.ReLU(), conv(4, 2))
    equalized(model, torch.randn(2, 3, 8, 8), free=10)


@pytest.mark.parametrize(("kind", "shape"), [(nn.Conv1d, (2, 3, 9)), (nn.Conv3d, (2, 3, 5, 5, 5))])
def test_other_dimensions(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    equalized(nn.Sequential(kind(3, 6, 3), nn.ReLU(), kind(6, 4, 3)), torch.randn(shape), free=6)


def test_a_flattened_image_in_front_of_a_linear_layer() -> None:
    model = nn.Sequential(conv(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))
    equalized(model, torch.randn(2, 3, 4, 4), free=6)


def test_a_linear_chain_without_biases() -> None:
    model = nn.Sequential(
        nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)
    )
    equalized(model, torch.randn(4, 3), free=16)


def test_residuals_share_one_scale() -> None:
    body: Body = lambda m, x: m.c((lambda y: (y + m.b(y)).relu())(m.a(x).relu()))  # noqa: E731
    equalized(Model(body, a=conv(3, 6), b=conv(6, 6), c=conv(6, 2)), torch.randn(2, 3, 8, 8), free=6)


def test_concatenations_and_their_readers() -> None:
    body: Body = lambda m, x: (lambda a, b: m.d(torch.cat([a, b], 1)) + m.c(a))(m.a(x).relu(), m.b(x).relu())  # noqa: E731
    model = Model(body, a=conv(3, 4), b=conv(3, 2), c=conv(4, 2), d=conv(6, 2))
    equalized(model, torch.randn(2, 3, 8, 8), free=6)


def test_a_concatenation_with_the_models_input() -> None:
    model = Model(lambda m, x: m.b(torch.cat([x, m.a(x).relu()], 1)), a=conv(3, 4), b=conv(7, 2))
    equalized(model, torch.randn(2, 3, 8, 8), free=4)


@pytest.mark.thorough
def test_squeeze_and_excitation() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.c(y * m.expand(m.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid())  # type: ignore[no-any-return, operator]

    model = Model(body, a=conv(3, 6), squeeze=conv(6, 2, 1), expand=conv(2, 6, 1), c=conv(6, 2))
    equalized(model, torch.randn(2, 3, 8, 8), free=8)


@pytest.mark.thorough
def test_chunks_and_channel_shuffle() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        keep, change = m.a(x).relu().chunk(2, 1)  # type: ignore[operator]
        y = torch.cat([keep, m.b(change).relu()], 1)  # type: ignore[operator]
        n, c, h, w = y.shape
        return m.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))  # type: ignore[no-any-return, operator]

    equalized(Model(body, a=conv(3, 6), b=conv(3, 3), c=conv(6, 2)), torch.randn(2, 3, 8, 8))


@pytest.mark.thorough
def test_a_shortcut_padded_with_zero_channels() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.c((m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))).relu())  # type: ignore[no-any-return, operator]

    equalized(Model(body, a=conv(3, 4), b=conv(4, 6, stride=2), c=conv(6, 2)), torch.randn(2, 3, 8, 8), free=6)


@pytest.mark.thorough
def test_a_layer_used_twice_is_scaled_for_each_use() -> None:
    body: Body = lambda m, x: m.c(m.b(m.b(m.a(x).relu()).relu()).relu())  # noqa: E731
    check(
        uneven(Model(body, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))),
        torch.randn(2, 3, 8, 8),
        by=EQUALIZE,
        tolerance=EXACT,
    )


def test_a_dead_channel_is_left_alone() -> None:
    model = uneven(nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)))
    with torch.no_grad():
        model[0].weight[2] = 0  # type: ignore[index]
        model[2].weight[:, 3] = 0  # type: ignore[index]
    graph = check(model, torch.randn(2, 3, 8, 8), by=EQUALIZE, tolerance=EXACT)
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())


def test_a_single_layer_has_nothing_to_equalize_with() -> None:
    check(uneven(nn.Sequential(conv(3, 6), nn.ReLU())), torch.randn(2, 3, 8, 8), by=EQUALIZE, changes=0)


def test_even_layers_are_left_alone() -> None:
    model = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.sign())
        model[2].weight.copy_(model[2].weight.sign())
    check(model, torch.randn(2, 3, 8, 8), by=EQUALIZE, changes=0)


def test_a_weight_computed_from_the_input_is_left_alone() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return F.conv2d(y, m.b(y).mean((0, 2, 3)).reshape(2, 4, 1, 1))  # type: ignore[operator]

    model = uneven(Model(body, a=conv(3, 4), b=conv(4, 8)))
    graph = capture(model, torch.randn(2, 3, 8, 8))
    expected = graph(torch.ones(2, 3, 8, 8))
    EQUALIZE(graph)
    graph.refresh()
    torch.testing.assert_close(graph(torch.ones(2, 3, 8, 8)), expected, rtol=1e-4, atol=1e-4)


def test_the_moments_of_a_folded_norm_follow_the_scales() -> None:
    model = uneven(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4)))
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)  # type: ignore[index]
        model[1].bias.normal_()  # type: ignore[index]
    graph = capture(model, torch.randn(2, 3, 8, 8))
    FoldBatchNorm()(graph)
    graph.refresh()
    before = graph.tensor(graph.calls()[0].args[1]).flatten(1).abs().amax(1)
    EQUALIZE(graph)
    scale = before / graph.tensor(graph.calls()[0].args[1]).flatten(1).abs().amax(1)
    mean, deviation = graph.calls()[0].meta["moments"]
    torch.testing.assert_close(mean, model[1].bias / scale)
    torch.testing.assert_close(deviation, model[1].weight.abs() / scale, rtol=1e-4, atol=1e-6)


def test_a_uniform_scale_per_tensor_fits_better_after() -> None:
    """What the pass is for: the smallest channel range over the largest, in each layer."""
    model = uneven(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16, groups=16), nn.ReLU(), conv(16, 4, 1)))

    def evenness(graph: Graph) -> float:
        weights = [
            graph.tensor(node.args[1]).flatten(1).abs().amax(1) for node in graph.calls(torch.ops.aten.conv2d.default)
        ]
        return min(float(w.min() / w.max()) for w in weights[1:2])

    graph = capture(model, torch.randn(2, 3, 8, 8))
    before = evenness(graph)
    EQUALIZE(graph)
    assert evenness(graph) > 5 * before


@pytest.mark.thorough
@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    relu6=st.booleans(), bias=st.booleans(), kernel=st.sampled_from([1, 3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_chain_is_equalized_exactly(widths: list[int], relu6: bool, bias: bool, kernel: int, seed: int) -> None:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in zip([3, *widths], widths, strict=False):
        parts += [conv(inputs, outputs, kernel, bias=bias), nn.ReLU6() if relu6 else nn.ReLU()]
    model, x = uneven(nn.Sequential(*parts[:-1])), torch.randn(2, 3, 6, 6) * 5
    assume(not cancels(model, x))
    made_even(model, x, free=sum(widths[:-1]))


def cancels(model: nn.Module, x: Tensor) -> bool:
    """Whether rounding weights to float32 alone moves the answers by as much as `EXACT` allows: sums of terms that cancel."""
    answer, moved = copy.deepcopy(model).double()(x.double()), 0.0
    for _ in range(3):
        rounded = copy.deepcopy(model).double()
        for weight in rounded.parameters():
            weight.data *= 1 + torch.finfo(torch.float32).eps / 2 * torch.randn_like(weight)
        moved = max(moved, float((rounded(x.double()) - answer).detach().abs().max()))
    return 4 * moved > EXACT * float(answer.detach().abs().max())

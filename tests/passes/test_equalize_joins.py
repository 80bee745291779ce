"""Equalization across whatever channels go through between layers: exact, and the ranges meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rewriting import Model, apply, assert_close, capture, check
from test_equalize_channels import EQUALIZE, EXACT, conv, equalized, ranges, uneven
from torch import Tensor, nn

from graphopt.compiler.recipes import prepare
from graphopt.formats import Format
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.targets import find, names

Body = Callable[..., object]
X = (2, 3, 8, 8)
ORDER = torch.tensor([4, 0, 5, 1, 3, 2])


def by_hand(y: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


class Unit(nn.Module):
    """One unit of a ShuffleNetV2: half of the channels stay, the others are worked on, both are shuffled."""

    def __init__(self, width: int, shuffle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        half = width // 2
        self.shuffle = shuffle
        self.work = nn.Sequential(
            conv(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(), conv(half, half, groups=half), nn.BatchNorm2d(half),
            conv(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, y: Tensor) -> Tensor:
        keep, change = y.chunk(2, 1)
        return self.shuffle(torch.cat([keep, self.work(change)], 1))


def shuffled(shuffle: Callable[[Tensor], Tensor], width: int = 8, units: int = 3) -> nn.Module:
    body: Body = lambda m, x: m.fc(m.units(m.stem(x).relu()).mean((2, 3)))  # noqa: E731
    stack = nn.Sequential(*(Unit(width, shuffle) for _ in range(units)))
    return Model(body, stem=conv(3, width), units=stack, fc=nn.Linear(width, 5)).eval()


SHUFFLES: dict[str, Callable[[Tensor], Tensor]] = {
    "by hand": by_hand, "operator": lambda y: F.channel_shuffle(y, 2),
    "gather": lambda y: y.index_select(1, torch.arange(8).reshape(2, 4).T.reshape(-1)),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHUFFLES)
def test_a_network_of_shuffles_is_equalized_in_all_its_channels(name: str) -> None:
    """Stem 8, and in each unit 4 + 4 + 4: every channel of every layer but the last is free, and read."""
    graph = check(uneven(shuffled(SHUFFLES[name])), torch.randn(X), by=[FoldBatchNorm(), EQUALIZE], tolerance=1e-4)
    written, read, pinned = ranges(graph)
    both = ~pinned & (written > 0) & (read > 0)
    assert int(both.sum()) == 8 + 3 * 12
    assert np.allclose(written[both], read[both], rtol=1e-2)


PER_TENSOR = [
    name for name in names() if isinstance(find(name).formats.weights, Format) and not find(name).formats.weights.per_channel  # type: ignore[union-attr]
]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("target", PER_TENSOR)
@pytest.mark.parametrize("name", SHUFFLES)
def test_the_recipe_of_every_target_with_one_scale_per_tensor_takes_shuffles(target: str, name: str) -> None:
    x = torch.randn(X)
    model = uneven(shuffled(SHUFFLES[name]))
    graph = capture(model, x)
    ran = [type(step).__name__ for step in prepare(find(target)) if apply(step, graph)]
    assert "EqualizeChannels" in ran
    if "AbsorbHighBias" not in ran:  # which is exact but for a few values
        assert_close(graph(x), model(x))


def test_targets_with_a_power_of_two_per_tensor_are_among_them() -> None:
    assert {"vitis", "ambarella", "wuqi"} <= set(PER_TENSOR)


BETWEEN: dict[str, tuple[Body, int]] = {  # and how many channels come out
    "gather": (lambda m, y: y.index_select(1, ORDER), 6),
    "gather of some": (lambda m, y: y.index_select(1, ORDER[:4]), 4),
    "gather with repetition": (lambda m, y: y.index_select(1, torch.cat([ORDER, ORDER[:2]])), 8),
    "list of indices": (lambda m, y: y[:, [5, 0, 1, 4, 2, 3]], 6),
    "two shuffles": (lambda m, y: by_hand(by_hand(y), 3), 6),
    "shuffle around a relu": (lambda m, y: y.unflatten(1, (2, 3)).transpose(1, 2).relu().flatten(1, 2), 6),
    "parts swapped": (lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1), 6),
    "slices": (lambda m, y: torch.cat([y[:, 4:], y[:, :4]], 1), 6),
    "flip and roll": (lambda m, y: y.flip(1).roll(2, 1), 6),
    "space to depth": (lambda m, y: F.pixel_unshuffle(y, 2), 24),
    "difference": (lambda m, y: y - m.side(y).relu(), 6),
    "quotient by a gate": (lambda m, y: y / (m.side(y).sigmoid() + 1), 6),
    "stack": (lambda m, y: torch.stack([y, m.side(y)], 2).flatten(2, 3), 6),
    "norm behind relu": (lambda m, y: m.norm(y), 6),
    "norm twice": (lambda m, y: m.norm(m.norm(y).relu()), 6),
    "shift": (lambda m, y: y + m.shift, 6),
    "shift from the left": (lambda m, y: m.shift - y, 6),
    "one shift for two sums": (lambda m, y: (y + m.shift).relu() + (m.side(y) + m.shift), 6),
    "clamp by tensors": (lambda m, y: torch.clamp(y, m.low, m.high), 6),
    "clamp from zero": (lambda m, y: y.clamp_min(0.0), 6),
    "zeros behind": (lambda m, y: F.pad(y, (0, 0, 0, 0, 1, 1)), 8),
    "the input beside": (lambda m, y: torch.cat([m.x, by_hand(y)], 1), 9),
}  # fmt: skip


def joined(name: str) -> nn.Module:
    between, width = BETWEEN[name]

    def body(m: nn.Module, x: Tensor) -> Tensor:
        m.x = x
        return m.b(between(m, m.a(x).relu()))  # type: ignore[no-any-return, operator]

    model = Model(body, a=conv(3, 6), b=conv(width, 4), side=conv(6, 6), norm=nn.BatchNorm2d(6))
    model.register_buffer("shift", torch.randn(6, 1, 1))
    model.register_buffer("low", -torch.rand(1, 6, 1, 1) - 0.2)
    model.register_buffer("high", torch.rand(6, 1, 1) + 0.2)
    return model


@pytest.mark.parametrize("name", BETWEEN)
def test_ranges_meet_across(name: str) -> None:
    model = joined(name)
    graph = equalized(model, torch.randn(X), free=4 if name == "gather of some" else 6)
    first = next(node for node in graph.calls(torch.ops.aten.conv2d.default) if graph.site(node) == "a")
    weight = graph.tensor(first.args[1])  # type: ignore[arg-type]
    assert float((model.a.weight.detach() / weight).log().abs().max()) > 0.1  # type: ignore[operator, union-attr]


def test_several_outputs_hold_their_own_channels_alone() -> None:
    def body(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        held, free = m.a(x).relu().split(3, 1)  # type: ignore[operator]
        return held, m.c(m.b(torch.cat([held, free], 1)).relu())  # type: ignore[operator]

    graph = equalized(Model(body, a=conv(3, 6), b=conv(6, 4), c=conv(4, 2)), torch.randn(X), free=7)
    assert len(graph.outputs) == 2


@pytest.mark.thorough
def test_a_weight_that_layers_share_is_copied_for_each() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = by_hand(m.b(by_hand(m.a(x).relu())).relu())  # type: ignore[operator]
        return m.c(m.b(y).relu())  # type: ignore[no-any-return, operator]

    equalized(Model(body, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2)), torch.randn(X), free=12)


@pytest.mark.parametrize(
    "norm",
    [lambda y: F.batch_norm(y, None, None, training=True), lambda y: F.dropout(y, 0.5, training=True).sigmoid()],
    ids=["batch norm", "dropout"],
)
def test_training_behaviour_that_stays_is_not_equalized_across(norm: Callable[[Tensor], Tensor]) -> None:
    model = uneven(Model(lambda m, x: m.b(norm(m.a(x)).relu()), a=conv(3, 6), b=conv(6, 4)))
    graph = capture(model, torch.randn(X))
    assert apply(EQUALIZE, graph) == []


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_grouped_layers_between_shuffles(kind: type[nn.Module], groups: int) -> None:
    body: Body = lambda m, x: m.c(by_hand(m.b(by_hand(m.a(x).relu(), 3)).relu()))  # noqa: E731
    model = Model(body, a=conv(3, 6), b=kind(6, 6, 3, groups=groups), c=conv(6, 2))
    equalized(model, torch.randn(X), free=12)


def test_a_shuffled_image_flattened_in_front_of_a_linear_layer() -> None:
    body: Body = lambda m, x: m.fc(by_hand(m.a(x).relu()).flatten(1))  # noqa: E731
    equalized(Model(body, a=conv(3, 6), fc=nn.Linear(6 * 64, 5)), torch.randn(X), free=6)


def test_residuals_through_a_shuffle_share_factors_along_its_cycles() -> None:
    """y + shuffle(y) ties each channel to the one it lands on: 0 and 5 stay, 1 2 4 3 go round."""
    body: Body = lambda m, x: m.c((lambda y: y + by_hand(y))(m.a(x).relu()))  # noqa: E731
    equalized(Model(body, a=conv(3, 6), c=conv(6, 2)), torch.randn(X), free=3)


@pytest.mark.thorough
def test_channels_beside_rows_that_end_up_as_features_stay() -> None:
    """Features are channels of one layer, and rows of pixels of all channels of the other."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        rows = m.b(x).relu().transpose(1, 2)  # type: ignore[operator]
        return m.fc(by_hand(torch.cat([rows, m.a(x).relu()], 1)).flatten(1))  # type: ignore[no-any-return, operator]

    model = uneven(Model(body, a=conv(3, 4), b=conv(3, 8), fc=nn.Linear(12 * 64, 5)))
    check(model, torch.randn(X), by=EQUALIZE, tolerance=EXACT)


@pytest.mark.thorough
def test_a_layer_that_reads_positions_in_heads_keeps_the_factors_of_heads_apart() -> None:
    """A linear layer reads positions in heads: factors of whole heads would have to go through its bias."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        heads = m.a(x).relu().unflatten(-1, (2, 3))  # type: ignore[operator]
        return m.c(m.b(heads).relu().flatten(-2))  # type: ignore[no-any-return, operator]

    model = uneven(Model(body, a=nn.Linear(4, 6), b=nn.Linear(3, 3), c=nn.Linear(6, 2)))
    check(model, torch.randn(2, 5, 4), by=EQUALIZE, tolerance=EXACT)


@pytest.mark.thorough
def test_clips_that_keep_one_end_hold_the_channels_of_a_shuffle() -> None:
    model = uneven(Model(lambda m, x: m.b(by_hand(F.relu6(m.a(x)))), a=conv(3, 6), b=conv(6, 4)))
    check(model, torch.randn(X), by=EqualizeChannels(clips=False), changes=0)
    check(model, torch.randn(X), by=EQUALIZE, changes=2, tolerance=EXACT)

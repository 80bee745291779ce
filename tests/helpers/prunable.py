"""Small networks, one per thing that channels go through, and what their groups must be: "name units", with "fixed"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rewriting import Model
from torch import Tensor, nn

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {}


def case(shape: tuple[int, ...], *groups: str) -> Callable[[Callable[[], nn.Module]], Any]:
    """Register a network with its input's shape and its groups but for the last, the fixed one of the output."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[make.__name__] = (make, shape, list(groups))
        return make

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def head(inputs: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 5))


IMAGE = (2, 3, 8, 8)


@case(IMAGE, "a 8", "b1 6")
def residual_add() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.head(F.relu(y + m.b2(F.relu(m.n(m.b1(y))))))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), b1=conv(8, 6), n=nn.BatchNorm2d(6), b2=conv(6, 8), head=head(8))


@case(IMAGE, "a 4", "b 6", "c 6")
def concat_at_offsets() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).relu(), m.b(x).relu()
        return m.head(m.c(torch.cat([b, a, m.n(b)], 1)).relu())  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 4), b=conv(3, 6), n=nn.BatchNorm2d(6), c=conv(16, 6), head=head(6))


@case(IMAGE, "a 10", "b 4", "c 6")
def split_at_offsets() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x).relu().split([4, 6], 1)
        return m.head(torch.cat([m.b(one), m.c(two)], 1))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 10), b=conv(4, 4), c=conv(6, 6), head=head(10))


@case(IMAGE, "a 4")
def chunks_that_are_added() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x).relu().chunk(2, 1)
        return m.head(one * torch.sigmoid(two))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), head=head(4))


@case(IMAGE, "a 8", "b 6")
def flatten_into_linear() -> nn.Module:
    return Model(
        lambda m, x: m.c(m.b(m.a(x).relu().flatten(1)).relu()), a=conv(3, 8), b=nn.Linear(512, 6), c=nn.Linear(6, 5)
    )


@case(IMAGE, "a 8", "b 6")
def reshape_into_linear() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.a(x).relu(), 4)
        return m.c(m.b(y.permute(0, 2, 3, 1).reshape(x.shape[0], -1)).relu())  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), b=nn.Linear(32, 6), c=nn.Linear(6, 5))


@case(IMAGE, "a 8", "b 6")
def channels_last() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).permute(0, 2, 3, 1)
        return m.c(F.gelu(m.b(y)).transpose(1, 3).mean((2, 3)))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 5))


@case(IMAGE, "a 8")
def padded_shortcut() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.head(F.relu(m.n(m.b(y)) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 4), b=conv(4, 8, stride=2), n=nn.BatchNorm2d(8), head=head(8))


@case(IMAGE, "a 4", "a 2", "b 3")
def grouped_convolution() -> nn.Module:
    return Model(lambda m, x: m.head(m.b(m.a(x).relu()).relu()), a=conv(3, 8), b=conv(8, 12, groups=4), head=head(12))


@case(IMAGE, "a 4", "b 3")
def depthwise_convolution_with_a_multiplier() -> nn.Module:
    return Model(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu()), a=conv(3, 4), b=conv(4, 12, groups=4, bias=False), head=head(12)
    )


@case(IMAGE, "a 4", "b 6")
def transposed_convolution() -> nn.Module:
    return Model(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu()), a=conv(3, 4), b=nn.ConvTranspose2d(4, 6, 2, 2), head=head(6)
    )


@case(IMAGE, "a 4", "a 2", "b 3")
def grouped_transposed_convolution() -> nn.Module:
    up = nn.ConvTranspose2d(8, 12, 2, 2, groups=4)
    return Model(lambda m, x: m.head(m.b(m.a(x).relu()).relu()), a=conv(3, 8), b=up, head=head(12))


@case(IMAGE, "a 3", "a 2 fixed", "a 2 fixed", "b 6")
def pixel_shuffle() -> nn.Module:
    return Model(lambda m, x: m.head(m.b(F.pixel_shuffle(m.a(x), 2)).relu()), a=conv(3, 12), b=conv(3, 6), head=head(6))


@case(IMAGE, "a 4", "b 6")
def pixel_unshuffle() -> nn.Module:
    return Model(
        lambda m, x: m.head(m.b(F.pixel_unshuffle(m.a(x).relu(), 2)).relu()), a=conv(3, 4), b=conv(16, 6), head=head(6)
    )


@case(IMAGE, "a 8", "down 3")
def squeeze_and_excite() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.n(m.a(x)).relu()
        return m.head(y * m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid())  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), n=nn.BatchNorm2d(8), down=conv(8, 3, 1), up=conv(3, 8, 1), head=head(8))


@case(IMAGE, "a 8", "b 6")
def channel_shuffle() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        y = y.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 8, 8, 8)
        return m.head(m.b(y))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), b=conv(8, 6), head=head(6))


def normed(norm: nn.Module) -> nn.Module:
    return Model(lambda m, x: m.head(m.norm(m.a(x)).relu()), a=conv(3, 8), norm=norm, head=head(8))


@case(IMAGE, "a 8")
def batch_norm() -> nn.Module:
    return normed(nn.BatchNorm2d(8))


@case(IMAGE, "a 8")
def instance_norm() -> nn.Module:
    return normed(nn.InstanceNorm2d(8, affine=True))


@case(IMAGE, "a 4", "a 2")
def group_norm() -> nn.Module:
    return normed(nn.GroupNorm(4, 8))


@case(IMAGE, "a 8")
def layer_norm() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.head(m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu())  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), norm=nn.LayerNorm(8), head=head(8))


@case(IMAGE, "a 8", "b 4")
def shared_weight() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.head(m.b(m.twice(m.twice(y).relu()).relu()))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), twice=conv(8, 8), b=conv(8, 4), head=head(4))


@case(IMAGE, "a 8")
def gating() -> nn.Module:
    return Model(lambda m, x: m.head(m.a(x) * m.b(x).tanh()), a=conv(3, 8), b=conv(3, 8), head=head(8))


@case(IMAGE, "a 8", "b 4")
def expand_and_broadcast() -> nn.Module:
    scale = torch.linspace(1, 2, 8).view(8, 1, 1)

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        mean = y.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)
        return m.head(m.b(y * mean + scale))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 8), b=conv(8, 4), head=head(4))


@case(IMAGE, "a 4", "b 6")
def windows_unfolded_and_folded() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = F.unfold(m.a(x), 3, padding=1).relu()
        return m.head(m.b(F.fold(y, (8, 8), 3, padding=1)))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 4), b=conv(4, 6), head=head(6))


@case(IMAGE, "weight 6", "b 4")
def standardised_weight() -> nn.Module:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.gain = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.rand(6))
            self.b, self.head = conv(6, 4), head(4)

        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, 6, -1)
            weight = F.batch_norm(flat, None, None, weight=self.gain, training=True).reshape_as(self.weight)
            return self.head(self.b(F.conv2d(x, weight).relu()))  # type: ignore[no-any-return]

    return Standardised()


@case(IMAGE, "a 4", "b 6")
def resized() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).contiguous(memory_format=torch.channels_last)
        return m.head(m.b(F.interpolate(y, scale_factor=2) + F.interpolate(y, (16, 16), mode="bilinear")))  # type: ignore[no-any-return]

    return Model(body, a=conv(3, 4), b=conv(4, 6), head=head(6))

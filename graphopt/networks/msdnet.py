"""Multi-scale dense networks: feature maps of several sizes from the first layer on, and an answer behind each block.

    model = msdnet(10, blocks=4, channels=8, growth=4)
    *early, last = model(images)              logits [N, classes] of each block, the earliest first

Each layer adds channels to each scale, made of all channels that there are at that scale and at the next finer one. Answers come
from the coarsest scale, which is useful from the first block on, unlike the last map of a network cut short. Scales that no later
answer needs end on the way: the finest first, where channels are halved as well.

Huang et al. 2018, "Multi-Scale Dense Networks for Resource Efficient Image Classification", sections 4 and A.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

REDUCTION = 0.5  # of channels, where a scale ends


class MSDNet(nn.Module):
    """See `msdnet`. The heads of answers are `heads.0`, `heads.1`, ..."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        scales, answers = self.stem(x), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            scales = block(scales)
            answers.append(head(scales[-1]))
        return answers


def msdnet(
    classes: int,
    *,
    blocks: int = 5,
    layers: int = 4,
    step: int = 2,
    channels: int = 16,
    growth: int = 6,
    factors: Sequence[int] = (1, 2, 4),
    bottlenecks: Sequence[int] = (1, 2, 4),
    head: int = 128,
    image_channels: int = 3,
) -> MSDNet:
    """A network that answers behind each block.

    Args:
        classes: of an answer.
        blocks: answers. layers: of the first block. step: layers of each later one.
        channels: that the stem makes at the finest scale. growth: that a layer adds there.
        factors: of both, at each scale, the finest first; as many as there are scales, each half the size of the one before.
        bottlenecks: channels of 1x1 convolutions in front of those of 3x3, as a multiple of what a layer adds, at each scale.
        head: channels of the two convolutions of an answer.
        image_channels: of the input, [N, image_channels, H, W].

    Raises:
        InputError: a count that is none, or as many bottlenecks as there are no scales.
    """
    counts = {
        "classes": classes, "blocks": blocks, "layers": layers, "step": step, "channels": channels, "growth": growth,
        "head": head, "image_channels": image_channels, **{f"factors[{i}]": f for i, f in enumerate(factors)},
        **{f"bottlenecks[{i}]": b for i, b in enumerate(bottlenecks)},
    }  # fmt: skip
    for name, count in counts.items():
        check_count(name, count)
    if not factors or len(factors) != len(bottlenecks):
        raise InputError(
            f"give one factor and one bottleneck for each scale, got {len(factors)} and {len(bottlenecks)}"
        )
    plan = _Plan([channels * factor for factor in factors], growth, list(factors), list(bottlenecks))
    total, made, heads = layers + step * (blocks - 1), 0, []
    parts = []
    for number in range(blocks):
        inside: list[nn.Module] = []
        for _ in range(step if number else layers):
            inside.append(plan.layer())
            made += 1
            if plan.ends_scale(made, total):
                inside.append(plan.transition())
        parts.append(nn.Sequential(*inside))
        heads.append(_head(plan.widths[-1], head, classes))
    return MSDNet(_Stem(image_channels, [channels * factor for factor in factors]), parts, heads)


class _Plan:
    """How wide each scale is, while layers are added; scales that have ended are gone from the front."""

    def __init__(self, widths: list[int], growth: int, factors: list[int], bottlenecks: list[int]) -> None:
        self.widths, self.growth, self.factors, self.bottlenecks = widths, growth, factors, bottlenecks
        self.scales = len(widths)

    def layer(self) -> nn.Module:
        made = [self.growth * factor for factor in self.factors]
        finer = [None, *self.widths[:-1]]
        parts = [_Scale(*given) for given in zip(finer, self.widths, made, self.bottlenecks, strict=True)]
        self.widths = [width + new for width, new in zip(self.widths, made, strict=True)]
        return _Layer(parts)

    def ends_scale(self, made: int, total: int) -> bool:
        """Scales end one by one over the depth, so that all but the coarsest are gone in its last part."""
        left = max(1, -(-self.scales * (total - made) // total))
        return len(self.widths) > left

    def transition(self) -> nn.Module:
        kept = self.widths[1:]
        self.widths = [max(1, int(width * REDUCTION)) for width in kept]
        self.factors, self.bottlenecks = self.factors[1:], self.bottlenecks[1:]
        return _Transition([_convolution(a, b, 1) for a, b in zip(kept, self.widths, strict=True)])


class _Stem(nn.Module):
    """[N, C, H, W] to maps of all scales, each of half the size of the one before."""

    def __init__(self, channels: int, widths: list[int]) -> None:
        super().__init__()
        before = [channels, *widths[:-1]]
        self.scales = nn.ModuleList(
            _convolution(a, b, 3, stride=2 if number else 1)
            for number, (a, b) in enumerate(zip(before, widths, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for scale in self.scales:
            x = scale(x)
            found.append(x)
        return found


class _Layer(nn.Module):
    def __init__(self, scales: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [scale(maps[number - 1] if number else None, maps[number]) for number, scale in enumerate(self.scales)]


class _Scale(nn.Module):
    """What a layer adds to one scale: of its own channels, and half of it of the next finer scale's, if there is one."""

    def __init__(self, finer: int | None, own: int, made: int, bottleneck: int) -> None:
        super().__init__()
        half = made // 2 if finer is not None else 0
        self.down = _added(finer, half, bottleneck, stride=2) if finer is not None and half else None
        self.same = _added(own, made - half, bottleneck, stride=1)

    def forward(self, finer: Tensor | None, own: Tensor) -> Tensor:
        parts = [own, self.same(own)]
        if self.down is not None:
            parts.insert(1, self.down(finer))
        return torch.cat(parts, 1)


class _Transition(nn.Module):
    def __init__(self, scales: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [scale(x) for scale, x in zip(self.scales, maps[1:], strict=True)]


def _added(channels: int, made: int, bottleneck: int, *, stride: int) -> nn.Module:
    inner = min(channels, bottleneck * made)
    return nn.Sequential(_convolution(channels, inner, 1), _convolution(inner, made, 3, stride=stride))


def _convolution(channels: int, made: int, size: int, *, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(channels, made, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(made), nn.ReLU(inplace=True))


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _head(channels: int, width: int, classes: int) -> nn.Module:
    layers = [_convolution(channels, width, 3, stride=2), _convolution(width, width, 3, stride=2)]
    return nn.Sequential(*layers, _Mean(), nn.Linear(width, classes))

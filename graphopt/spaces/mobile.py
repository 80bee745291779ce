"""Mobile networks whose blocks are chosen: inverted residuals of several kernel sizes and expansions, or none.

Papers: Tan et al. 2019, "MnasNet"; Cai et al. 2019, "ProxylessNAS", section 4.2; Wu et al. 2019, "FBNet", table 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from graphopt.spaces.choice import Choice
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError


class _InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise, 1x1 back; the input is added where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def mobile(
    inputs: int = 3,
    classes: int = 10,
    *,
    widths: Sequence[int] = (16, 24, 32),
    blocks: int = 2,
    kernels: Sequence[int] = (3, 5),
    expansions: Sequence[int] = (2, 4),
    stride: int = 2,
) -> nn.Module:
    """A classifier of images [N, inputs, H, W], with logits [N, classes].

    Args:
        widths: channels of each stage; every stage but the first begins with a stride of two.
        blocks: of a stage; each is chosen among kernels and expansions, and all but the first may be left out.
        stride: of the stem.

    Raises:
        InputError: an even kernel, or counts that are not positive.
    """
    for name, counts in (("widths", widths), ("kernels", kernels), ("expansions", expansions)):
        for count in counts:
            check_count(name, count)
    check_count("blocks", blocks)
    if any(kernel % 2 == 0 for kernel in kernels):
        raise InputError(f"kernels must be odd, got {tuple(kernels)}")
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, widths[0], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU6(),
    ]  # fmt: skip
    width = widths[0]
    for stage, outputs in enumerate(widths):
        for number in range(blocks):
            step = 2 if stage and not number else 1
            options: list[nn.Module] = [
                _InvertedResidual(width, outputs, step, kernel, expansion)
                for expansion in sorted(expansions, reverse=True)
                for kernel in sorted(kernels, reverse=True)
            ]
            if number:
                options.append(nn.Identity())
            parts.append(Choice(options))
            width = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

"""What makes an answer of a value on the way, [N, C, H, W] a signal [N, C, T] or a sequence [N, T, C], as small as may be.

linear   the mean over positions, and a linear layer
conv     3x3 convolutions of stride 2 with batch norm and ReLU, each to twice the channels, until a map has at most
         8 x 8 positions (no more than two of them), one more of stride 1, then as `linear`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from graphopt.utils.errors import InputError

SMALLEST, MOST = 8, 2  # positions along a side of a map that is not made smaller; convolutions
Head = str | Callable[[Sequence[int], int], nn.Module]


class Linear(nn.Module):
    """Means over positions to classes."""

    def __init__(self, channels: int, classes: int, *, last: bool) -> None:
        """`last`: channels are the last dimension, as those of sequences."""
        super().__init__()
        self.last, self.linear = last, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x.mean(1 if self.last else tuple(range(2, x.dim()))))
        return found


def make(head: Head, shape: Sequence[int], classes: int, *, last: bool = True) -> nn.Module:
    """A head for values of this shape, the first dimension left out; of two, `last`: the second is that of channels.

    Raises:
        InputError: an unknown name.
    """
    if callable(head):
        return head(shape, classes)
    if head not in ("linear", "conv"):
        raise InputError(
            f"head must be 'linear', 'conv' or a function of a shape and the number of classes, got {head!r}"
        )
    if len(shape) == 2:
        return Linear(shape[1 if last else 0], classes, last=last)
    channels, side, layers = shape[0], min(shape[1:]), list[nn.Module]()
    while head == "conv" and side > SMALLEST and len(layers) < MOST:
        layers.append(_conv(channels, 2 * channels, 2))
        channels, side = 2 * channels, (side + 1) // 2
    if head == "conv":
        layers.append(_conv(channels, channels, 1))
    return nn.Sequential(*layers, Linear(channels, classes, last=False))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

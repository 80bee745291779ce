"""The resolution of images as a choice: one network, several sizes of its input.

    model = resolutions(MobileNet(), shares=(1.0, 0.75, 0.5))

Every option resizes the images, bilinearly, and runs the same layers with the same weights. What is extracted begins with the
resizing; who can read images at that size in the first place leaves it out.

Paper: Tan and Le 2019, "EfficientNet", section 3.2; Cai et al. 2020, "Once-for-All", section 3.3 (elastic resolution).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.spaces.choice import Choice
from graphopt.utils.errors import InputError


class Resized(nn.Module):
    """Images [N, C, H, W] with this share of their rows and columns, rounded."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        size = [max(1, round(int(n) * self.share)) for n in x.shape[-2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resolutions(model: nn.Module, shares: Sequence[float] = (1.0, 0.75)) -> Choice:
    """A choice between resolutions for a network of images whose output does not depend on their size, such as a classifier that
    pools over all of them.

    Raises:
        InputError: a share that is not over 0 and up to 1, or one that is named twice.
    """
    if not shares or len(set(shares)) < len(shares) or not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares are over 0 and up to 1, each once, got {tuple(shares)}")
    return Choice([model if share == 1 else nn.Sequential(Resized(share), model) for share in shares])

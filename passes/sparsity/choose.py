"""Which weights a mask keeps, given one score per weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lowest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Masks, bool in the scores' shapes, without the `count` lowest scores of all tensors together."""
    flat = torch.cat([s.flatten() for s in scores])
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[torch.topk(flat, count, largest=False).indices] = False
    return [part.view_as(s) for part, s in zip(torch.split(keep, [s.numel() for s in scores]), scores, strict=True)]


def best_of_each(scores: Tensor, keep: int, block: int) -> Tensor:
    """Mask of N:M sparsity: the `keep` highest scores of every `block` consecutive ones along dimension 1 stay.

    Args:
        scores: [out, in / groups, *kernel], in / groups a multiple of `block`.

    Paper: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.1.
    """
    moved = scores.movedim(1, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, block)
    best = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, blocks.topk(keep, -1).indices, True)
    return best.flatten(-2).movedim(-1, 1)


def ramp(schedule: str, step: int, steps: int) -> float:
    """The share of the way from the sparsity at the start to that at the end after `step` of `steps` steps.

    `cubic` is 1 - (1 - t)^3, fast while much is redundant: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    t = step / steps
    return t if schedule == "linear" else 1 - (1 - t) ** 3

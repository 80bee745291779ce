"""Alternatives of a module: one is chosen, be it by sampling, by learned weights or by a search.

    Choice([nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 5, padding=2), nn.Identity()])
    Choice(same_kinds, like=other)       chooses together with another: cells that are repeated
    PartialChoice(options, 4)            computes options on a quarter of the channels: PC-DARTS
    EdgeChoice(3)(a, b, c)               chooses among values: the edges that lead to a node

Captured, it is a choice that is live in the graph (`graphopt.ir.choices`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphopt.ir.choices import CHOOSE, constant_name, one_hot
from graphopt.utils.checks import check_count
from graphopt.utils.errors import InputError

NAME = constant_name("", "operator")
EDGE = constant_name("", "edge")


class Choice(nn.Module):
    """One of several modules that take the same input and give tensors of one shape.

    Args:
        options: the modules. like: a choice of as many options; the two choose together.

    Raises:
        InputError: no options, or another number than those of `like`.
    """

    def __init__(self, options: Sequence[nn.Module], *, like: Choice | None = None) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)
        if not options:
            raise InputError("a choice needs at least one option")
        if like is not None and len(like.options) != len(options):
            counts = f"{len(options)} and {len(like.options)}"
            raise InputError(f"choices that choose together have equally many options, got {counts}")
        self.register_buffer(NAME, one_hot(0, len(options)) if like is None else like.get_buffer(NAME))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = CHOOSE([option(x) for option in self.options], self.get_buffer(NAME))
        return found

    def choose(self, option: int) -> None:
        """Choose an option, by its number."""
        with torch.no_grad():
            self.get_buffer(NAME).copy_(one_hot(option, len(self.options)))


class PartialChoice(Choice):
    """A choice for the first of `share` equal parts of the channels; the others pass by it, and all are shuffled.

        y = shuffle([choice(x[:, :C / share]), x[:, C / share:]])           the part that passes is pooled with the options

    Memory and time of a search fall by about as much. The network that is found is made with `Choice`, of all channels.

    Paper: Xu et al. 2020, "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", section 3.2.

    Args:
        options: modules for [N, C / share, H, W]; they may halve H and W. like: as for `Choice`.
    """

    def __init__(self, options: Sequence[nn.Module], share: int, *, like: Choice | None = None) -> None:
        super().__init__(options, like=like)
        check_count("share", share)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels % self.share:
            raise InputError(f"{channels} channels do not fall into {self.share} equal parts")
        chosen, passing = super().forward(x[:, : channels // self.share]), x[:, channels // self.share :]
        if chosen.shape[2:] != passing.shape[2:]:
            passing = F.max_pool2d(passing, 2, ceil_mode=True)
        return F.channel_shuffle(torch.cat([chosen, passing], 1), self.share)


class EdgeChoice(nn.Module):
    """A choice among values of one shape, such as the edges that lead to a node of a cell.

    Weights that are learned for it, softmax(beta), are the edge normalization of PC-DARTS (section 3.3 there, equation 4).

    Args:
        count: of the values. like: a choice of as many; the two choose together.
    """

    def __init__(self, count: int, *, like: EdgeChoice | None = None) -> None:
        super().__init__()
        check_count("count", count)
        self.register_buffer(EDGE, one_hot(0, count) if like is None else like.get_buffer(EDGE))

    def forward(self, *values: Tensor) -> Tensor:
        found: Tensor = CHOOSE(list(values), self.get_buffer(EDGE))
        return found


class Zero(nn.Module):
    """No connection: zeros in the place of the input, in every `stride`-th row and column."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride] * 0.0

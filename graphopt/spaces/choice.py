"""Alternatives of a module: one is chosen, be it by sampling, by learned weights or by a search.

    Choice([nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 5, padding=2), nn.Identity()])
    Choice(same_kinds, like=other)       chooses together with another: cells that are repeated

Captured, it is a choice that is live in the graph (`graphopt.ir.choices`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graphopt.ir.choices import CHOOSE, constant_name, one_hot
from graphopt.utils.errors import InputError

NAME = constant_name("", "operator")


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


class Zero(nn.Module):
    """No connection: zeros in the place of the input, in every `stride`-th row and column."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride] * 0.0

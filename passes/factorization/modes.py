"""The features of a linear layer as tensors of several modes.

W [out, in]  ->  T [O1 I1, O2 I2, .., Od Id]          out = O1 .. Od, in = I1 .. Id
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from graphopt.ir.calls import shape
from graphopt.ir.layer import Layer
from graphopt.utils.errors import InputError

Split: TypeAlias = int | tuple[tuple[int, ...], tuple[int, ...]]
product = math.prod


@dataclass(frozen=True)
class Modes:
    """Factors of the inputs and of the outputs."""

    inside: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def pairs(self) -> tuple[int, ...]:
        """The sizes of the tensor that the weight becomes."""
        return tuple(o * i for o, i in zip(self.out, self.inside, strict=True))


def check_split(split: object) -> None:
    """Raise `ValueError` where `modes` is neither a number nor the factors of the inputs and the outputs."""
    if isinstance(split, int) and not isinstance(split, bool) and split >= 2:
        return
    if isinstance(split, tuple) and len(split) == 2 and all(isinstance(part, tuple) for part in split):
        sizes = [size for part in split for size in part]
        if len(split[0]) == len(split[1]) >= 2 and all(isinstance(s, int) and s >= 1 for s in sizes):
            return
    raise InputError(
        "modes must be a number of at least 2, or as many factors of the inputs as of the outputs, like ((8, 4), (4, 16)); "
        f"got {split!r}"
    )


def modes_of(split: Split, layer: Layer | Tensor) -> Modes:
    """The modes of a linear layer, or of its weight."""
    out, inside = layer.shape if isinstance(layer, Tensor) else (layer.out_channels, layer.in_channels)
    if isinstance(split, tuple):
        return Modes(*split)
    return Modes(balanced(inside, split)[::-1], balanced(out, split))  # a large factor meets a small one


def balanced(size: int, count: int) -> tuple[int, ...]:
    """The factors of a size, rising, whose sum is the smallest."""
    return min(_factors(size, count, 1), key=lambda factors: (sum(factors), factors))


def _factors(size: int, count: int, least: int) -> Iterable[tuple[int, ...]]:
    if count == 1:
        yield (size,)
        return
    for factor in range(least, math.floor(size ** (1 / count) + 1e-9) + 1):
        if size % factor == 0:
            yield from ((factor, *rest) for rest in _factors(size // factor, count - 1, factor))


def tensorized(weight: Tensor, modes: Modes) -> Tensor:
    """[out, in] -> [O1 I1, .., Od Id]"""
    count = len(modes.out)
    order = [axis for k in range(count) for axis in (k, count + k)]
    return weight.reshape(*modes.out, *modes.inside).permute(order).reshape(modes.pairs)


def refuses(split: Split, layer: Layer) -> str | None:
    """Why a layer's features cannot be taken apart; None where they can."""
    if layer.kind != "linear":
        return "it is a convolution, and linear layers are taken apart into modes"
    if sum(not isinstance(size, int) for size in shape(layer.input)) > 1:
        return "more than one dimension of its input is free"
    modes = modes_of(split, layer)
    if (math.prod(modes.inside), math.prod(modes.out)) != (layer.in_channels, layer.out_channels):
        return f"its {layer.in_channels} inputs and {layer.out_channels} outputs have other factors than {split}"
    if sum(size > 1 for size in modes.pairs) < 2:
        return f"its {layer.in_channels} inputs and {layer.out_channels} outputs have no factors"
    return None

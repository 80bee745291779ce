"""Values of the emitted program and the order their dimensions have in memory.

Passes and torch count dimensions as [N, C, H, W]; kernels want the channels innermost. A value keeps both: its shape as torch
sees it, and for every position in memory which dimension lies there. Permuting is then a matter of names, and moves no data:

    shape (1, 64, 56, 56), order (0, 2, 3, 1)    in memory [1, 56, 56, 64]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Order = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor.

    Attributes:
        expr: the Relax variable or constant.
        shape: as torch has it.
        order: the dimension at each position in memory.
    """

    expr: Any
    shape: tuple[int, ...]
    order: Order

    @property
    def stored(self) -> tuple[int, ...]:
        """The sizes in memory."""
        return tuple(self.shape[d] for d in self.order)

    def position(self, dim: int) -> int:
        """Where a dimension (counted from either end) lies in memory."""
        if not self.shape:
            raise ValueError("its input is a scalar, which has no dimension")
        return self.order.index(dim % len(self.shape))

    def permuted(self, dims: tuple[int, ...]) -> Value:
        """What torch's `permute(dims)` gives, in the same memory."""
        dims = tuple(d % len(dims) for d in dims)
        return Value(self.expr, tuple(self.shape[d] for d in dims), tuple(dims.index(d) for d in self.order))


def plain(rank: int) -> Order:
    """As torch has it."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Dimension 1 innermost; as torch has it where there is no image."""
    return (0, *range(2, rank), 1) if rank > 2 else plain(rank)


def moves_nothing(shape: tuple[int, ...], old: Order, new: Order) -> bool:
    """Whether two orders differ by dimensions of size 1 alone."""
    return [d for d in old if shape[d] != 1] == [d for d in new if shape[d] != 1]

"""What stands in the place of an embedding table, [vocabulary, width]: fitted to its rows, counted in bytes, emitted as calls.

A method is a class with

    fit(wanted)             the replacement of at most so many bytes that is nearest to the rows, each weighted by how often its
                            token occurs; `InputError` where there is none so small
    parts()                 its constants by name, which are trained and counted
    emit(build, ids)        the calls that compute rows [..., width] from ids [...], int64
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.fx.node import Node
from typing_extensions import Self

from graphopt.ir.build import Build
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """What is to be replaced.

    Attributes:
        table: float64 [vocabulary, width].
        weights: of its rows, float64 [vocabulary], of mean 1: how often each token occurs, or all the same.
        bytes: that the replacement may have.
        seed: of random starts.
        tokens: the text of each token, where it is known.
        known: whether `weights` were counted on data.
    """

    table: Tensor
    weights: Tensor
    bytes: float
    seed: int = 0
    tokens: Sequence[str] | None = None
    known: bool = False

    @property
    def vocabulary(self) -> int:
        return self.table.shape[0]

    @property
    def width(self) -> int:
        return self.table.shape[1]

    def refuse(self, method: str, least: float) -> InputError:
        """That the smallest replacement of a method is too large."""
        share = least / (4 * self.table.numel())
        return InputError(
            f"{method!r} takes at least {least / 1e3:.0f} kB for a table of {self.vocabulary} x {self.width}, {share:.2g} of "
            f"its bytes; keep more than that, or take another method"
        )


class Replacement(ABC):
    """See the head of this file. Attributes:
    name: of the method."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, wanted: Wanted) -> Self: ...

    @abstractmethod
    def parts(self) -> Mapping[str, Tensor]: ...

    @abstractmethod
    def emit(self, build: Build, ids: Node) -> Node: ...

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts().values())

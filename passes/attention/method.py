"""What stands in the place of softmax attention, and what it works with.

A method is a frozen dataclass with

    start(sizes)     its constants by name, as they are before anything is fitted; all are learned
    fixed(sizes)     those that are not learned
    emit(heads)      the calls that give [N, H, queries, values]

and says in `can` what it is able to do: `causal`, and `cross` (other keys than queries).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.build import Build, Number
from graphopt.ir.ops import aten
from graphopt.passes.attention.find import SDPA


@dataclass(frozen=True)
class Sizes:
    """Of one attention.

    Attributes:
        heads, width: H, and d of queries and keys. values: of values.
        scale: of the scores.
        keys: tokens that are looked at; None where they are free and without an end.
        causal: no token sees a later one.
        dtype: of all values.
        seed: of random numbers.
    """

    heads: int
    width: int
    values: int
    scale: float
    keys: int | None
    causal: bool
    dtype: torch.dtype
    seed: int = 0

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def identity(self, factor: float) -> Tensor:
        """One matrix for each head, [H, d, d]."""
        return factor * torch.eye(self.width).repeat(self.heads, 1, 1)


class Heads:
    """One attention, for emitting.

    Attributes:
        query, key, value: [N, H, queries, d], [N, H, keys, d], [N, H, keys, values].
        queries, keys: numbers of tokens.
        mask: of keys, [.., 1, keys], bool or added to scores; None: all are seen.
    """

    def __init__(
        self,
        build: Build,
        sizes: Sizes,
        values: Sequence[Node],
        tokens: tuple[Number, Number],
        mask: Node | None,
        booleans: bool,
    ) -> None:
        self.build, self.sizes, self.call = build, sizes, build.call
        self.query, self.key, self.value = values
        self.queries, self.keys = tokens
        self.mask, self.booleans = mask, booleans

    @property
    def low(self) -> float:
        """What is added to scores that shall count for nothing: adding a score to it is still finite."""
        return torch.finfo(self.sizes.dtype).min / 2

    @property
    def tiny(self) -> float:
        """Keeps quotients finite."""
        return 1e-9 if self.sizes.dtype in (torch.float32, torch.float64) else 1e-4

    def weights(self) -> Node | None:
        """By how much each key counts, [.., 1, keys]; None: all alike."""
        if self.mask is None:
            return None
        return (
            self.call(aten.to.dtype, self.mask, self.sizes.dtype)
            if self.booleans
            else self.call(aten.exp.default, self.mask)
        )

    def bias(self) -> Node | None:
        """What is added to the scores of each key, [.., 1, keys]; None: nothing."""
        if self.mask is None or not self.booleans:
            return self.mask
        kept = self.call(aten.to.dtype, self.mask, self.sizes.dtype)
        missing = self.call(aten.sub.Tensor, kept, 1.0)
        return self.call(aten.mul.Tensor, missing, -self.low)

    def zeros(self) -> Node:
        """A bias of nothing, [1, keys]."""
        return self.call(aten.new_zeros.default, self.key, [1, self.keys])

    def matmul(self, one: Node | str, other: Node | str) -> Node:
        return self.call(aten.matmul.default, one, other)

    def turned(self, x: Node) -> Node:
        return self.call(aten.transpose.int, x, -2, -1)

    def add(self, x: Node, other: Any) -> Node:
        """The sum; x where there is nothing to add."""
        return x if other is None else self.call(aten.add.Tensor, x, other)

    def mul(self, x: Node, other: Any) -> Node:
        return x if other is None else self.call(aten.mul.Tensor, x, other)

    def softmax(self, x: Node, dim: int = -1) -> Node:
        return self.call(aten.softmax.int, x, dim)

    def unsqueezed(self, x: Node) -> Node:
        """[.., a, b] -> [.., 1, a, b]."""
        return self.call(aten.unsqueeze.default, x, -3)

    def expanded(self, x: Node, like: Node) -> Node:
        """A value of [.., blocks, size, width] with as many samples and heads as another."""
        return self.call(aten.expand_as.default, x, like)

    def softmax_attention(self, keys: Node, values: Node, bias: Node | None, queries: Node | None = None) -> Node:
        """To few keys, or of few queries."""
        query = self.query if queries is None else queries
        return self.call(SDPA, query, keys, values, bias, 0.0, False, scale=self.sizes.scale)

    def mapped(self, x: Node, matrix: str, shift: str) -> Node:
        """x W + b, of each head."""
        return self.add(self.matmul(x, matrix), shift)


class Method(ABC):
    """See the head of this file. Attributes:
    name: in `ReplaceAttention(name)`.
    can: `causal`, `cross`."""

    name: ClassVar[str]
    can: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def start(self, sizes: Sizes) -> Mapping[str, Tensor]: ...

    def fixed(self, sizes: Sizes) -> Mapping[str, Tensor]:
        return {}

    @abstractmethod
    def emit(self, heads: Heads) -> Node: ...

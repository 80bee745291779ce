"""Block-sparse attention: blocks of tokens look at themselves, at blocks beside them, and at some tokens that all see.

    queries of block i, tokens i c .. (i + 1) c - 1, see
        blocks i - w .. i + w                      (causal: i - w .. i, and there no later token)
        the first g tokens, or every n-th token    (causal: those before these blocks)

The first g tokens themselves see all (not where attention is causal, or every n-th token is seen instead). What is seen counts as
in softmax attention; nothing is learned. It grows with tokens (2 w + 1) c, and with the square of tokens over n.

Papers: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", section 4.2 (local and strided); Beltagy et al.
        2020, "Longformer", section 3.1 (tokens that see all); Zaheer et al. 2020, "Big Bird", section 2 (blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.build import Number
from graphopt.ir.ops import aten
from graphopt.passes.attention.features import blocks_of, from_blocks, in_blocks
from graphopt.passes.attention.method import Heads, Method, Sizes
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Blocks(Method):
    """`blocks`. `block`: c. `beside`: w, blocks on each side. `first`: g, at most a block. `every`: n; 0: none but the first."""

    name: ClassVar[str] = "blocks"
    can: ClassVar[frozenset[str]] = frozenset({"causal"})

    block: int = 64
    beside: int = 1
    first: int = 1
    every: int = 0

    def __post_init__(self) -> None:
        if self.block < 1 or self.beside < 0 or self.every < 0 or not 0 <= self.first <= self.block:
            raise InputError(
                f"block must be at least 1, beside and every at least 0, first from 0 to block; got block={self.block}, "
                f"beside={self.beside}, first={self.first}, every={self.every}"
            )

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        return {}

    def fixed(self, sizes: Sizes) -> Mapping[str, Tensor]:
        if not sizes.causal:
            return {}
        before = torch.arange((self.beside + 1) * self.block) - self.beside * self.block
        later = before > torch.arange(self.block)[:, None]
        return {"later": later.float() * torch.finfo(sizes.dtype).min / 2}

    def emit(self, heads: Heads) -> Node:
        count, missing = blocks_of(heads, self.block)
        given = heads.bias()
        bias = heads.turned(heads.zeros() if given is None else given)
        queries, keys, values = (
            in_blocks(heads, x, count, missing, self.block) for x in (heads.query, heads.key, heads.value)
        )
        near = heads.turned(
            self._around(heads, in_blocks(heads, bias, count, missing, self.block, heads.low), count, heads.low)
        )
        keys, values = (self._around(heads, x, count, 0.0) for x in (keys, values))
        scores = heads.add(heads.mul(heads.matmul(queries, heads.turned(keys)), heads.sizes.scale), near)
        scores = heads.add(scores, "later") if heads.sizes.causal else scores
        if not self.first and not self.every:
            return from_blocks(heads, heads.matmul(heads.softmax(scores), values))
        return self._with_far(heads, queries, scores, values, bias, count)

    def _with_far(self, heads: Heads, queries: Node, scores: Node, values: Node, bias: Node, count: Number) -> Node:
        """With the tokens that all see beside those of the neighbourhood."""
        far_keys, far_values, far_bias = (heads.unsqueezed(self._far(heads, x)) for x in (heads.key, heads.value, bias))
        far = heads.mul(heads.matmul(queries, heads.turned(far_keys)), heads.sizes.scale)
        far = heads.add(heads.add(far, heads.turned(far_bias)), self._again(heads, count))
        shares = heads.softmax(heads.call(aten.cat.default, [scores, far], -1))
        width = (1 + (1 if heads.sizes.causal else 2) * self.beside) * self.block
        near_shares = heads.call(aten.slice.Tensor, shares, -1, 0, width)
        far_shares = heads.call(aten.slice.Tensor, shares, -1, width)
        result = heads.add(heads.matmul(near_shares, values), heads.matmul(far_shares, far_values))
        result = from_blocks(heads, result)
        return result if heads.sizes.causal or self.every else self._with_first(heads, result)

    def _around(self, heads: Heads, x: Node, count: Number, fill: float) -> Node:
        """[.., blocks, size, width] -> [.., blocks, those of the neighbourhood in a row, width]."""
        behind = 0 if heads.sizes.causal else self.beside
        framed = heads.call(aten.constant_pad_nd.default, x, [0, 0, 0, 0, self.beside, behind], fill)
        parts = [heads.call(aten.narrow.default, framed, -3, n, count) for n in range(self.beside + 1 + behind)]
        return parts[0] if len(parts) == 1 else heads.call(aten.cat.default, parts, -2)

    def _far(self, heads: Heads, x: Node) -> Node:
        """Those of all tokens that all see."""
        if self.every:
            return heads.call(aten.slice.Tensor, x, -2, 0, None, self.every)
        return heads.call(aten.slice.Tensor, x, -2, 0, self.first)

    def _again(self, heads: Heads, count: Number) -> Node:
        """Leaves out of those that all see the ones in the neighbourhood (causal: or behind it), [blocks, 1, far]."""
        own = heads.call(aten.unsqueeze.default, heads.call(aten.arange.default, count), -1)
        if self.every:
            tokens = heads.call(aten.arange.start_step, 0, heads.keys, self.every)
            block = heads.call(aten.floor_divide.default, tokens, self.block)
        else:
            block = heads.call(aten.new_zeros.default, own, [1])
        apart = heads.call(aten.sub.Tensor, own, block)
        apart = apart if heads.sizes.causal else heads.call(aten.abs.default, apart)
        inside = heads.call(aten.le.Scalar, apart, self.beside)
        bias = heads.mul(heads.call(aten.to.dtype, inside, heads.sizes.dtype), heads.low)
        return heads.call(aten.unsqueeze.default, bias, -2)

    def _with_first(self, heads: Heads, result: Node) -> Node:
        """The first tokens see all."""
        queries = heads.call(aten.slice.Tensor, heads.query, -2, 0, self.first)
        seen = heads.softmax_attention(heads.key, heads.value, heads.bias(), queries)
        rest = heads.call(aten.slice.Tensor, result, -2, self.first)
        return heads.call(aten.cat.default, [seen, rest], -2)

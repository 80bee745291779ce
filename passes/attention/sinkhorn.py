"""Blocks of tokens that look at themselves and at another block, sorted to them.

    G = s mean(Q_i) W mean(K_j)^T               of blocks i and j: [N, H, blocks, blocks]
    R = Sinkhorn(G)                             rows and columns of exp(G) divided by their sums in turn: nearly a permutation
    A_i = softmax over [K_i, (R K)_i] of the queries of block i, with values [V_i, (R V)_i]

W, [H, d, d], is learned, and decides which block each one gets. A sorted token is a mean of tokens, and counts by the weight that
a mask leaves it. The paper computes G by a layer for a fixed number of blocks; a product of means takes any.

Paper:  Tay et al. 2020, "Sparse Sinkhorn Attention", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.ops import aten
from graphopt.passes.attention.features import blocks_of, from_blocks, in_blocks
from graphopt.passes.attention.method import Heads, Method, Sizes
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Sinkhorn(Method):
    """`sinkhorn`. `block`: tokens. `turns`: of dividing rows and columns."""

    name: ClassVar[str] = "sinkhorn"

    block: int = 64
    turns: int = 5

    def __post_init__(self) -> None:
        for name, given in (("block", self.block), ("turns", self.turns)):
            if given < 1:
                raise InputError(f"{name} must be at least 1, got {given}")

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        return {"sorting": sizes.identity(4.0)}

    def emit(self, heads: Heads) -> Node:
        count, missing = blocks_of(heads, self.block)
        given = heads.weights()
        ones = heads.add(heads.zeros(), 1.0) if given is None else given
        weights = in_blocks(heads, heads.turned(ones), count, missing, self.block)  # [.., blocks, size, 1]
        queries, keys, values = (
            in_blocks(heads, x, count, missing, self.block) for x in (heads.query, heads.key, heads.value)
        )
        keys, values = heads.mul(keys, weights), heads.mul(values, weights)
        order = self._order(heads, queries, keys, weights)
        both = [self._beside(heads, x, order) for x in (keys, values, weights)]
        some = heads.call(aten.clamp_min.default, both[2], heads.tiny)
        keys, values = (heads.call(aten.div.Tensor, x, some) for x in both[:2])
        scores = heads.mul(heads.matmul(queries, heads.turned(keys)), heads.sizes.scale)
        shares = heads.softmax(heads.add(scores, heads.turned(heads.call(aten.log.default, some))))
        return from_blocks(heads, heads.matmul(shares, values))

    def _order(self, heads: Heads, queries: Node, keys: Node, weights: Node) -> Node:
        """R, [N, H, blocks, blocks]."""

        def mean(x: Node) -> Node:
            total, counted = (heads.call(aten.sum.dim_IntList, y, [-2]) for y in (x, weights))
            return heads.call(aten.div.Tensor, total, heads.call(aten.clamp_min.default, counted, 1.0))

        one, other = mean(heads.mul(queries, weights)), mean(keys)
        logs = heads.mul(heads.matmul(heads.matmul(one, "sorting"), heads.turned(other)), heads.sizes.scale)
        for _ in range(self.turns):
            for dim in (-2, -1):
                logs = heads.call(aten.sub.Tensor, logs, heads.call(aten.logsumexp.default, logs, [dim], True))
        return heads.call(aten.exp.default, logs)

    def _beside(self, heads: Heads, x: Node, order: Node) -> Node:
        """[.., blocks, size, width] -> [N, H, blocks, 2 size, width]: each block, and the one sorted to it."""
        flat = heads.call(aten.flatten.using_ints, x, -2, -1)
        moved = heads.call(aten.unflatten.int, heads.matmul(order, flat), -1, [self.block, -1])
        return heads.call(aten.cat.default, [heads.expanded(x, moved), moved], -2)

"""Tokens that look at their neighbours and at relays, which look at all tokens.

    s_k = softmax(s r_k K^T + mask) [K, V]                    key and value of relay k
    A_i = softmax over tokens i-w .. i+w and relays

r, [H, relays, d], is learned: it begins at zero, a relay being the mean of all tokens. A relay counts as all tokens that a mask
leaves, times e^b with b learned. The paper's relay is a state that goes from layer to layer with its satellites' own; here each
layer's relays are made of its keys and values, as what was trained with softmax attention has no such states.

Paper:  Guo et al. 2019, "Star-Transformer", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.ops import aten
from graphopt.passes.attention.method import Heads, Method, Sizes
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Star(Method):
    """`star`. `radius`: w, tokens before and behind. `relays`: of each head."""

    name: ClassVar[str] = "star"

    radius: int = 1
    relays: int = 1

    def __post_init__(self) -> None:
        if self.radius < 0 or self.relays < 1:
            raise InputError(f"radius must be at least 0 and relays at least 1, got {self.radius} and {self.relays}")

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        spread = torch.randn(sizes.heads, self.relays, sizes.width, generator=sizes.generator)
        relay = spread if self.relays > 1 else torch.zeros_like(spread)
        return {"relay": relay, "importance": torch.zeros(sizes.heads, 1, self.relays)}

    def emit(self, heads: Heads) -> Node:
        scale, bias = heads.sizes.scale, heads.bias()
        asked = heads.mul(heads.matmul("relay", heads.turned(heads.key)), scale)
        reads = heads.softmax(heads.add(asked, bias))
        keys, values = (heads.matmul(reads, x) for x in (heads.key, heads.value))
        scores = heads.mul(heads.matmul(heads.query, heads.turned(keys)), scale)
        scores = heads.add(heads.add(scores, self._counted(heads)), "importance")
        offsets = range(2 * self.radius + 1)
        known = self._framed(heads, heads.turned(heads.zeros() if bias is None else bias), heads.low)
        near, behind = self._framed(heads, heads.key, 0.0), self._framed(heads, heads.value, 0.0)
        around = [self._score(heads, near, known, n) for n in offsets]
        shares = heads.softmax(heads.call(aten.cat.default, [*around, scores], -1))
        width = len(offsets)
        result = heads.matmul(heads.call(aten.narrow.default, shares, -1, width, self.relays), values)
        for n in offsets:
            share = heads.call(aten.narrow.default, shares, -1, n, 1)
            result = heads.add(result, heads.mul(share, self._at(heads, behind, n)))
        return result

    def _framed(self, heads: Heads, x: Node, fill: float) -> Node:
        """[.., tokens, width] with w more at both ends."""
        return heads.call(aten.constant_pad_nd.default, x, [0, 0, self.radius, self.radius], fill)

    def _at(self, heads: Heads, framed: Node, offset: int) -> Node:
        """For each token the one so far behind it, less w."""
        return heads.call(aten.narrow.default, framed, -2, offset, heads.keys)

    def _score(self, heads: Heads, near: Node, known: Node, offset: int) -> Node:
        product = heads.call(aten.mul.Tensor, heads.query, self._at(heads, near, offset))
        score = heads.mul(heads.call(aten.sum.dim_IntList, product, [-1], True), heads.sizes.scale)
        return heads.add(score, self._at(heads, known, offset))

    def _counted(self, heads: Heads) -> Node:
        """The logarithm of the number of tokens, [.., 1, 1]."""
        weights = heads.weights()
        weights = heads.add(heads.zeros(), 1.0) if weights is None else weights
        total = heads.call(aten.sum.dim_IntList, weights, [-1], True)
        return heads.call(aten.log.default, heads.call(aten.clamp_min.default, total, 1.0))

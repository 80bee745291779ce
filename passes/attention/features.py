"""Linear attention: a product of features in the place of the exponential of a product.

    A = f(Q) (f(K)^T V)  /  f(Q) (f(K)^T 1)          f: [tokens, d] -> [tokens, features], none negative

    elu      f(x) = elu(x W + b) + 1
    relu     f(x) = relu(x W + b)
    exp      f(x) = exp(x W + b - s |x|^2 / 2)       W: sqrt(s) times random directions, orthogonal in blocks of d

With random W the products of `exp` features are s-scaled softmax's in the mean (s: the scale of the scores). W and b, for each
head and for queries and keys apart, are learned. f(K)^T V is [features, values], whatever the number of tokens; causal, it is
summed over blocks of tokens, with the shares within a block computed one by one.

Papers: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.2 (elu); Choromanski et al. 2021, "Rethinking Attention with
        Performers", section 2.3 (exp); Zhang et al. 2024, "The Hedgehog & the Porcupine" (features learned from softmax).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.ops import aten
from graphopt.passes.attention.method import Heads, Method, Sizes
from graphopt.utils.errors import InputError

Features = Literal["elu", "relu", "exp"]


@dataclass(frozen=True)
class Linear(Method):
    """`elu`, `relu`, `exp`. `count`: of features of each head; None: the width of a head. `block`: tokens whose shares are
    computed one by one where attention is causal."""

    name: ClassVar[str] = "linear"
    can: ClassVar[frozenset[str]] = frozenset({"causal", "cross"})

    features: Features = "elu"
    count: int | None = None
    block: int = 64

    def __post_init__(self) -> None:
        if self.features not in get_args(Features):
            raise InputError(f"features must be one of {', '.join(get_args(Features))}, got {self.features!r}")
        for name, given in (("count", self.count), ("block", self.block)):
            if given is not None and given < 1:
                raise InputError(f"{name} must be at least 1, got {given}")

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        count = self.count or sizes.width
        if self.features != "exp" and count == sizes.width:
            matrix = sizes.identity(sizes.scale**0.5)
        else:
            matrix = sizes.scale**0.5 * directions(sizes, count)
        shift = torch.zeros(sizes.heads, 1, count)
        return {"query_map": matrix, "query_shift": shift, "key_map": matrix.clone(), "key_shift": shift.clone()}

    def fixed(self, sizes: Sizes) -> Mapping[str, Tensor]:
        return {"past": torch.ones(self.block, self.block).tril()} if sizes.causal else {}

    def emit(self, heads: Heads) -> Node:
        queries = self._features(heads, heads.query, "query", (-1,))
        keys = self._features(heads, heads.key, "key", (-2, -1))
        weights = heads.weights()
        keys = heads.mul(keys, None if weights is None else heads.turned(weights))
        values = heads.call(aten.constant_pad_nd.default, heads.value, [0, 1], 1.0)  # the last column sums shares
        both = (
            self._past(heads, queries, keys, values) if heads.sizes.causal else self._all(heads, queries, keys, values)
        )
        width = heads.sizes.values
        sums = heads.add(heads.call(aten.narrow.default, both, -1, width, 1), heads.tiny)
        return heads.call(aten.div.Tensor, heads.call(aten.narrow.default, both, -1, 0, width), sums)

    def _features(self, heads: Heads, x: Node, name: str, stable: tuple[int, ...]) -> Node:
        """Of queries or keys. `stable`: the dimensions that share a factor, which division takes out again."""
        y = heads.mapped(x, f"{name}_map", f"{name}_shift")
        if self.features == "relu":
            return heads.call(aten.relu.default, y)
        if self.features == "elu":
            return heads.call(aten.add.Tensor, heads.call(aten.elu.default, y), 1.0)
        if name == "key":  # a query's own length is a factor of all its shares
            square = heads.call(aten.sum.dim_IntList, heads.call(aten.mul.Tensor, x, x), [-1], True)
            y = heads.call(aten.sub.Tensor, y, heads.mul(square, heads.sizes.scale / 2))
        largest = heads.call(aten.amax.default, y, list(stable), True)
        return heads.call(aten.exp.default, heads.call(aten.sub.Tensor, y, largest))

    def _all(self, heads: Heads, queries: Node, keys: Node, values: Node) -> Node:
        return heads.matmul(queries, heads.matmul(heads.turned(keys), values))

    def _past(self, heads: Heads, queries: Node, keys: Node, values: Node) -> Node:
        """Of the tokens up to each: those of its block, and sums over the blocks before."""
        size = self.block
        count, end = blocks_of(heads, size)
        queries, keys, values = (in_blocks(heads, x, count, end, size) for x in (queries, keys, values))
        shares = heads.call(aten.mul.Tensor, heads.matmul(queries, heads.turned(keys)), "past")
        states = heads.matmul(heads.turned(keys), values)
        before = heads.call(aten.sub.Tensor, heads.call(aten.cumsum.default, states, 2), states)
        both = heads.call(aten.add.Tensor, heads.matmul(shares, values), heads.matmul(queries, before))
        return from_blocks(heads, both)


def directions(sizes: Sizes, count: int) -> Tensor:
    """Random directions as long as those of a normal distribution, orthogonal in blocks of d: [H, d, count]."""
    found, generator, blocks = [], sizes.generator, -(-count // sizes.width)
    for _ in range(sizes.heads):
        normal, other = torch.randn(2, blocks, sizes.width, sizes.width, generator=generator)
        basis, upper = torch.linalg.qr(normal)
        basis = basis * upper.diagonal(dim1=1, dim2=2).sign()[:, None]  # otherwise not all directions are as likely
        found.append((basis * other.norm(dim=-1, keepdim=True)).flatten(0, 1)[:count].T)
    return torch.stack(found)


def blocks_of(heads: Heads, size: int) -> tuple[int | Node, int | Node]:
    """How many blocks of tokens there are, and how many tokens are missing in the last."""
    number = heads.build.number
    count = number(operator.floordiv, number(operator.add, heads.keys, size - 1), size)
    return count, number(operator.sub, number(operator.mul, count, size), heads.keys)


def in_blocks(heads: Heads, x: Node, count: int | Node, missing: int | Node, size: int, fill: float = 0.0) -> Node:
    """[.., tokens, width] -> [.., blocks, size, width], with further tokens at the end."""
    padded = x if missing == 0 else heads.call(aten.constant_pad_nd.default, x, [0, 0, 0, missing], fill)
    return heads.call(aten.unflatten.int, padded, -2, [count, size])


def from_blocks(heads: Heads, x: Node) -> Node:
    """[.., blocks, size, width] -> [.., tokens, width]."""
    return heads.call(aten.narrow.default, heads.call(aten.flatten.using_ints, x, -3, -2), -2, 0, heads.queries)

"""Efficient attention: softmax over the features of each query and over the tokens of each feature of the keys.

    A = r(Q W + b) (c(K W' + b')^T V)       r: softmax along rows, over features;  c: along columns, over tokens

r c^T has rows that sum to one, as the shares of attention do; c^T V is [d, values], whatever the number of tokens. W and b, for
each head, are learned; they start at the identity times the root of the scores' scale.

Paper:  Shen et al. 2021 (arXiv 2018), "Efficient Attention: Attention with Linear Complexities", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.passes.attention.method import Heads, Method, Sizes


@dataclass(frozen=True)
class Efficient(Method):
    """`efficient`."""

    name: ClassVar[str] = "efficient"
    can: ClassVar[frozenset[str]] = frozenset({"cross"})

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        matrix, shift = sizes.identity(sizes.scale**0.5), torch.zeros(sizes.heads, 1, sizes.width)
        return {"query_map": matrix, "query_shift": shift, "key_map": matrix.clone(), "key_shift": shift.clone()}

    def emit(self, heads: Heads) -> Node:
        queries = heads.softmax(heads.mapped(heads.query, "query_map", "query_shift"))
        bias = heads.bias()
        keys = heads.add(heads.mapped(heads.key, "key_map", "key_shift"), None if bias is None else heads.turned(bias))
        return heads.matmul(queries, heads.matmul(heads.turned(heads.softmax(keys, -2)), heads.value))

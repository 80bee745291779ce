"""Keys and values projected over tokens, to a fixed number of slots, and softmax attention to those.

    P = exp(L), [H, slots, tokens], a mask's tokens left out       m = P 1      what each slot stands for
    A = softmax(s Q (P K / m)^T + log m) (P V / m)

A slot is a mean of tokens, and counts as the sum of its weights: where each token has a slot of its own, or all tokens of a slot
are alike, A is softmax attention. L is learned; it begins with tokens in a row for each slot. The paper's projections may have
any sign; these are positive, so that tokens that a mask leaves out can be taken out of every slot. Keys and values have one
projection (the paper's key-value sharing).

Paper:  Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", section 4.
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

OUTSIDE = -6.0  # the logarithm of a token's weight in slots that are not its own, at the beginning


@dataclass(frozen=True)
class Linformer(Method):
    """`linformer`. `slots`: of each head. There is a weight for each of the most tokens that the graph takes."""

    name: ClassVar[str] = "linformer"
    can: ClassVar[frozenset[str]] = frozenset({"cross"})

    slots: int = 64

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise InputError(f"slots must be at least 1, got {self.slots}")

    def start(self, sizes: Sizes) -> Mapping[str, Tensor]:
        tokens = sizes.keys
        if tokens is None:
            raise InputError(
                "'linformer' has a weight for each token, and this graph takes any number of them; capture it with an end: "
                "dynamic_shapes={...: {1: torch.export.Dim('length', max=512)}}"
            )
        place = torch.arange(tokens) * self.slots // tokens if tokens > self.slots else torch.arange(tokens)
        own = torch.arange(self.slots)[:, None] == place
        return {"logits": torch.where(own, 0.0, OUTSIDE).repeat(sizes.heads, 1, 1)}

    def emit(self, heads: Heads) -> Node:
        project = heads.call(aten.exp.default, "logits")
        if not isinstance(heads.keys, int):
            project = heads.call(aten.narrow.default, project, -1, 0, heads.keys)
        weights = heads.weights()
        if weights is None:
            keys, values = heads.key, heads.value
            mass = heads.call(aten.sum.dim_IntList, project, [-1], True)
        else:
            column = heads.turned(weights)
            keys, values = heads.mul(heads.key, column), heads.mul(heads.value, column)
            mass = heads.matmul(project, column)
        some = heads.call(aten.clamp_min.default, mass, heads.tiny)
        keys, values = (heads.call(aten.div.Tensor, heads.matmul(project, x), some) for x in (keys, values))
        bias = heads.turned(heads.call(aten.log.default, some))
        bias = heads.call(aten.unsqueeze.default, bias, 0) if weights is None else bias
        return heads.softmax_attention(keys, values, bias)

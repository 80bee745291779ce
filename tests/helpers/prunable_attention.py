"""More of `prunable`: attention in its many spellings, embeddings, and what sequences are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from prunable import case
from rewriting import Model
from torch import Tensor, nn

TOKENS = (2, 5, 6)


@case(TOKENS, "a 8")
def position_embedding() -> nn.Module:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
            self.place, self.token = nn.Parameter(torch.randn(1, 6, 8)), nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1) + self.place
            return self.b(F.gelu(y)[:, 0])  # type: ignore[no-any-return]

    return Embedded()


@case((2, 5), "words 8", "b 6")
def embedding() -> nn.Module:
    return Model(
        lambda m, x: m.c(m.b(m.words((x * 3).long().clamp(0, 9)).mean(1)).relu()),
        words=nn.Embedding(10, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 5),
    )  # fmt: skip


class Attention(nn.Module):
    """Two heads of four positions, after a residual stream of eight channels."""

    def __init__(self, packed: bool, fused: bool) -> None:
        super().__init__()
        self.stem, self.out, self.head = nn.Linear(6, 10), nn.Linear(12, 10), nn.Linear(10, 5)
        self.packed, self.fused = packed, fused
        if packed:
            self.qkv = nn.Linear(10, 36)
        else:
            self.q, self.k, self.v = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        n, t, _ = y.shape
        if self.packed:
            q, k, v = self.qkv(y).reshape(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(y).view(n, t, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        z = (
            F.scaled_dot_product_attention(q, k, v)
            if self.fused
            else torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
        )
        return self.head(y + self.out(z.transpose(1, 2).reshape(n, t, 12)))  # type: ignore[no-any-return]


@case(TOKENS, "stem 10", "q 3", "q 4", "v 4")
def separate_fused_attention() -> nn.Module:
    return Attention(packed=False, fused=True)


@case(TOKENS, "stem 10", "q 3", "q 4", "v 4")
def separate_explicit_attention() -> nn.Module:
    return Attention(packed=False, fused=False)


@case(TOKENS, "stem 10", "qkv 3 fixed", "qkv 3", "qkv 4")
def packed_fused_attention() -> nn.Module:
    return Attention(packed=True, fused=True)


@case(TOKENS, "stem 10", "qkv 3 fixed", "qkv 3", "qkv 4")
def packed_explicit_attention() -> nn.Module:
    return Attention(packed=True, fused=False)


@case(TOKENS, "stem 12", "attend.in_proj_weight 3 fixed", "attend.in_proj_weight 3", "attend.in_proj_weight 4")
def multihead_attention() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return m.head(y + m.attend(y, y, y, need_weights=False)[0])  # type: ignore[no-any-return]

    return Model(
        body, stem=nn.Linear(6, 12), attend=nn.MultiheadAttention(12, 3, batch_first=True), head=nn.Linear(12, 5)
    )


@case(TOKENS, "stem 8", "q 4 fixed", "q 4", "k 2 fixed", "v 2 fixed", "v 4", "out 6")
def attention_with_fewer_keys_than_queries() -> nn.Module:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        n, t, _ = y.shape
        q, k, v = (f(y).view(n, t, -1, 4).transpose(1, 2) for f in (m.q, m.k, m.v))
        z = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.head(m.out(z.transpose(1, 2).reshape(n, t, 16)))  # type: ignore[no-any-return]

    layers = {"q": nn.Linear(8, 16), "k": nn.Linear(8, 8), "v": nn.Linear(8, 8), "out": nn.Linear(16, 6)}
    return Model(body, stem=nn.Linear(6, 8), head=nn.Linear(6, 5), **layers)

"""Rows made of pieces from codebooks: product quantization.

    E[i] = [ C_1[k_i1], ..., C_g[k_ig] ]        C_j: [256, width / g]   k: uint8 [vocabulary, g]

Each codebook is found by k-means over one piece of all rows, weighted by how often a token occurs, from rows drawn with these
weights; the number of pieces g is the largest that divides the width and keeps the size. A token takes g bytes.

Papers: Jegou et al. 2011, "Product Quantization for Nearest Neighbor Search", section II; Stock et al. 2020, "And the Bit Goes
        Down", for weights of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node
from typing_extensions import Self

from graphopt.ir.build import Build
from graphopt.ir.ops import aten
from graphopt.passes.embeddings.replacement import Replacement, Wanted

ENTRIES = 256
TURNS = 20


@dataclass(frozen=True)
class Product(Replacement):
    """`product`. codes: uint8 [vocabulary, g]. codebooks: [g * entries, width / g]. firsts: of each piece in there, int64 [g]."""

    name: ClassVar[str] = "product"

    codes: Tensor
    codebooks: Tensor
    firsts: Tensor

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        entries = min(ENTRIES, wanted.vocabulary)

        def size(pieces: int) -> int:
            return wanted.vocabulary * pieces + 4 * entries * wanted.width + 8 * pieces

        pieces = [g for g in range(1, wanted.width + 1) if wanted.width % g == 0 and size(g) <= wanted.bytes]
        if not pieces:
            raise wanted.refuse(cls.name, size(1))
        generator = torch.Generator().manual_seed(wanted.seed)
        rows = wanted.table.reshape(wanted.vocabulary, pieces[-1], -1)
        found = [k_means(part, wanted.weights, entries, generator) for part in rows.unbind(1)]
        codes = torch.stack([codes for _, codes in found], 1).to(torch.uint8)
        codebooks = torch.cat([centres for centres, _ in found]).float()
        return cls(codes, codebooks, entries * torch.arange(pieces[-1]))

    def parts(self) -> Mapping[str, Tensor]:
        return {"codes": self.codes, "codebooks": self.codebooks, "firsts": self.firsts}

    def emit(self, build: Build, ids: Node) -> Node:
        codes = build.call(aten.to.dtype, build.call(aten.index.Tensor, "codes", [ids]), torch.int64)
        pieces = build.call(aten.embedding.default, "codebooks", build.call(aten.add.Tensor, codes, "firsts"))
        return build.call(aten.flatten.using_ints, pieces, -2, -1)


def k_means(rows: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres [count, width] of rows [n, width], and the nearest of each row [n], of least weighted squares.

    A centre that loses all its rows goes on at one of the rows that are farthest from theirs.
    """
    centres = rows[torch.multinomial(weights, count, generator=generator)]
    for _ in range(TURNS):
        distance, codes = _nearest(rows, centres)
        mass = torch.zeros(count, dtype=rows.dtype).index_add_(0, codes, weights)
        total = torch.zeros_like(centres).index_add_(0, codes, weights[:, None] * rows)
        found = total / mass.clamp(min=1e-30)[:, None]
        if idle := int((mass == 0).sum()):
            found[mass == 0] = rows[(weights * distance).topk(idle).indices]
        if torch.equal(found, centres):
            break
        centres = found
    return centres, _nearest(rows, centres)[1]


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre, and which that is."""
    narrow, middle = rows.float(), centres.float()
    smallest, which = torch.addmm(middle.square().sum(1), narrow, middle.T, alpha=-2).min(1)  # less |row|^2
    return (smallest + narrow.square().sum(1)).clamp(min=0).to(rows.dtype), which

"""Rows made of few shared ones, which an id is split or hashed into.

    quotient   E[i] = Q[i // m] * R[i % m]              element by element; different for every id
    hashed     E[i] = sum_k P[i, k] S[h_k(i)]           S: [m, width] shared rows   P: [vocabulary, 2]   h_k: random hashes

Both are fitted by turns of least squares: one factor for the other held fixed.

Papers: Shi et al. 2020, "Compositional Embeddings Using Complementary Partitions", section 2.2; Svenstrup et al. 2017, "Hash
        Embeddings for Efficient Word Representations", section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx.node import Node
from typing_extensions import Self

from graphopt.ir.build import Build
from graphopt.ir.ops import aten
from graphopt.passes.embeddings.replacement import Replacement, Wanted

TURNS = 8
PRIME = 2**31 - 1  # of hashes (a i + b) mod PRIME mod m; ids and a are smaller, so that products fit 64 bits
HASHES = 2
SOLVED = 15  # steps of conjugate gradients at most
TINY = 1e-12


@dataclass(frozen=True)
class Quotient(Replacement):
    """`quotient`. quotients: [ceil(vocabulary / m), width]. remainders: [m, width]."""

    name: ClassVar[str] = "quotient"

    quotients: Tensor
    remainders: Tensor

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        rows, m = int(wanted.bytes // (4 * wanted.width)), wanted.vocabulary
        while m > 1 and m + -(-wanted.vocabulary // m) > rows:
            m = min(m - 1, rows - -(-wanted.vocabulary // m))
        if m <= 1:
            raise wanted.refuse(cls.name, 8 * wanted.width * wanted.vocabulary**0.5)
        count = -(-wanted.vocabulary // m)
        missing = count * m - wanted.vocabulary
        table = torch.nn.functional.pad(wanted.table, (0, 0, 0, missing)).reshape(count, m, -1)
        weights = torch.nn.functional.pad(wanted.weights, (0, missing)).reshape(count, m, 1)
        quotients, remainders = torch.ones(count, 1, wanted.width, dtype=table.dtype), None
        for _ in range(TURNS):
            remainders = (weights * table * quotients).sum(0) / (weights * quotients.square()).sum(0).clamp(min=TINY)
            over = (weights * table * remainders).sum(1) / (weights * remainders.square()).sum(1).clamp(min=TINY)
            quotients = over[:, None]
        assert remainders is not None
        return cls(quotients[:, 0].float(), remainders.float())

    def parts(self) -> Mapping[str, Tensor]:
        return {"quotients": self.quotients, "remainders": self.remainders}

    def emit(self, build: Build, ids: Node) -> Node:
        m = len(self.remainders)
        over = build.call(aten.div.Tensor_mode, ids, m, rounding_mode="floor")
        row = build.call(aten.embedding.default, "quotients", over)
        other = build.call(aten.embedding.default, "remainders", build.call(aten.remainder.Scalar, ids, m))
        return build.call(aten.mul.Tensor, row, other)


@dataclass(frozen=True)
class Hashed(Replacement):
    """`hashed`. shared: [m, width]. importance: [vocabulary, 2]. factors, shifts: a and b of each hash, int64 [2]."""

    name: ClassVar[str] = "hashed"

    shared: Tensor
    importance: Tensor
    factors: Tensor
    shifts: Tensor

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        m = int((wanted.bytes - 4 * HASHES * wanted.vocabulary - 16 * HASHES) // (4 * wanted.width))
        if m < HASHES:
            raise wanted.refuse(cls.name, 4 * HASHES * (wanted.vocabulary + wanted.width) + 16 * HASHES)
        generator = torch.Generator().manual_seed(wanted.seed)
        factors, shifts = (torch.randint(1, PRIME, (HASHES,), generator=generator) for _ in range(2))
        chosen = (torch.arange(wanted.vocabulary)[:, None] * factors + shifts) % PRIME % m
        importance = torch.randn(chosen.shape, dtype=torch.float64, generator=generator)
        shared = torch.zeros(m, wanted.width, dtype=torch.float64)
        for _ in range(TURNS):
            shared = _shared(wanted, chosen, importance, shared)
            importance = _importance(wanted.table, shared[chosen])
        return cls(shared.float(), importance.float(), factors, shifts)

    def parts(self) -> Mapping[str, Tensor]:
        return {
            "shared": self.shared, "importance": self.importance, "factors": self.factors, "shifts": self.shifts,
        }  # fmt: skip

    def emit(self, build: Build, ids: Node) -> Node:
        each = build.call(aten.mul.Tensor, build.call(aten.unsqueeze.default, ids, -1), "factors")
        hashed = build.call(aten.remainder.Scalar, build.call(aten.add.Tensor, each, "shifts"), PRIME)
        rows = build.call(aten.embedding.default, "shared", build.call(aten.remainder.Scalar, hashed, len(self.shared)))
        importance = build.call(aten.unsqueeze.default, build.call(aten.embedding.default, "importance", ids), -1)
        return build.call(aten.sum.dim_IntList, build.call(aten.mul.Tensor, rows, importance), [-2])


def _importance(table: Tensor, rows: Tensor) -> Tensor:
    """The least squares of each token's row by the rows [vocabulary, 2, width] that it is made of, [vocabulary, 2]."""
    gram = rows @ rows.transpose(1, 2)
    ridge = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=TINY)
    gram = gram + ridge[:, None, None] * torch.eye(HASHES, dtype=gram.dtype)
    found: Tensor = torch.linalg.solve(gram, (rows @ table[:, :, None]))[..., 0]
    return found


def _shared(wanted: Wanted, chosen: Tensor, importance: Tensor, start: Tensor) -> Tensor:
    """The shared rows of least weighted squares, by conjugate gradients."""

    def forward(shared: Tensor) -> Tensor:
        return (shared[chosen] * importance[..., None]).sum(1)

    def back(rows: Tensor) -> Tensor:
        found = torch.zeros_like(start)
        for number in range(HASHES):
            found.index_add_(0, chosen[:, number], (wanted.weights * importance[:, number])[:, None] * rows)
        return found

    def normal(shared: Tensor) -> Tensor:
        return back(forward(shared)) + 1e-6 * shared

    return conjugate_gradients(normal, back(wanted.table), start)


def conjugate_gradients(apply: Callable[[Tensor], Tensor], wanted: Tensor, start: Tensor) -> Tensor:
    """x with A x = b for a symmetric positive A, from a start; b and x are matrices, taken for one long vector."""
    x, rest = start, wanted - apply(start)
    direction, size = rest, float(rest.square().sum())
    enough = 1e-12 * float(wanted.square().sum())
    for _ in range(SOLVED):
        if size <= enough:
            break
        moved = apply(direction)
        step = size / float((direction * moved).sum())
        x, rest = x + step * direction, rest - step * moved
        before, size = size, float(rest.square().sum())
        direction = rest + size / before * direction
    return x

"""Tables as products of thin ones.

    svd      E = A B + m             A: [vocabulary, r]   B: [r, width]   m: [width], the mean row
    blocks   E = A_k B_k + m         one pair for each block of tokens, of a rank of its own, in order of frequency

The nearest in squares weighted by row: B are the first right singular vectors of the weighted rows, A the coordinates of each
row. Of blocks, ranks are given out one by one to whichever block loses most by not having it, for its bytes.

Papers: Lan et al. 2020, "ALBERT", section 3.1, for the shape; Chen et al. 2018, "GroupReduce: Block-Wise Low-Rank Approximation
        for Neural Language Model Shrinking", for blocks by frequency.
"""

from __future__ import annotations

import heapq
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
from graphopt.utils.errors import InputError

ENDS = (1 / 64, 1 / 16, 1 / 4, 1.0)  # of blocks: shares of the vocabulary, the most frequent tokens first


@dataclass(frozen=True)
class LowRank(Replacement):
    """`svd`. coordinates: [vocabulary, r]. directions: [width, r]. mean: [width]."""

    name: ClassVar[str] = "svd"

    coordinates: Tensor
    directions: Tensor
    mean: Tensor

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        one = 4 * (wanted.vocabulary + wanted.width)  # bytes of a rank
        rank = int(min((wanted.bytes - 4 * wanted.width) // one, wanted.width))
        if rank < 1:
            raise wanted.refuse(cls.name, one + 4 * wanted.width)
        mean = _mean(wanted)
        directions, _ = _principal(wanted.table - mean, wanted.weights)
        kept = directions[:, :rank]
        return cls(((wanted.table - mean) @ kept).float(), kept.float().contiguous(), mean.float())

    def parts(self) -> Mapping[str, Tensor]:
        return {"coordinates": self.coordinates, "directions": self.directions, "mean": self.mean}

    def emit(self, build: Build, ids: Node) -> Node:
        thin = build.call(aten.embedding.default, "coordinates", ids)
        return build.call(aten.linear.default, thin, "directions", "mean")


@dataclass(frozen=True)
class Blocks(Replacement):
    """`blocks`. order: the place of each token by frequency, int32 [vocabulary]. ends: of blocks, places. coordinates: of each
    block [tokens + 1, r], the first row zero, for tokens of other blocks. directions: [width, r]."""

    name: ClassVar[str] = "blocks"

    order: Tensor
    ends: tuple[int, ...]
    coordinates: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    mean: Tensor

    @classmethod
    def fit(cls, wanted: Wanted) -> Self:
        if not wanted.known:
            raise InputError("'blocks' are of tokens by frequency, which is counted on data; give data, or take 'svd'")
        places = wanted.weights.argsort(descending=True, stable=True)
        order = torch.empty_like(places)
        order[places] = torch.arange(len(places))
        ends = tuple(max(1, round(share * wanted.vocabulary)) for share in ENDS)
        mean = _mean(wanted)
        rows = [(wanted.table - mean)[part] for part in _split(places, ends)]
        masses = [float(part.mean()) for part in _split(wanted.weights[places], ends)]
        bases = [_principal(part, torch.ones(len(part), dtype=part.dtype)) for part in rows]
        left = wanted.bytes - 4 * (wanted.vocabulary + wanted.width)
        ranks = _ranks(
            [mass * gains for mass, (_, gains) in zip(masses, bases, strict=True)], list(map(len, rows)), wanted, left
        )
        kept = [basis[:, :rank] for (basis, _), rank in zip(bases, ranks, strict=True)]
        coordinates = [torch.cat([part.new_zeros(1, k.shape[1]), part @ k]) for part, k in zip(rows, kept, strict=True)]
        return cls(
            order.int(),
            ends,
            tuple(c.float() for c in coordinates),
            tuple(k.float().contiguous() for k in kept),
            mean.float(),
        )

    def parts(self) -> Mapping[str, Tensor]:
        found = {"order": self.order, "mean": self.mean}
        for number, (thin, wide) in enumerate(zip(self.coordinates, self.directions, strict=True)):
            if thin.shape[1]:
                found |= {f"coordinates_{number}": thin, f"directions_{number}": wide}
        return found

    def emit(self, build: Build, ids: Node) -> Node:
        place = build.call(aten.to.dtype, build.call(aten.index.Tensor, "order", [ids]), torch.int64)
        total: Node | None = None
        for number, (first, end) in enumerate(zip((0, *self.ends), self.ends, strict=False)):
            if f"coordinates_{number}" not in build.constants:
                continue
            local = build.call(aten.clamp.default, build.call(aten.add.Scalar, place, 1 - first), 0)
            inside = build.call(aten.lt.Scalar, place, end)
            row = build.call(aten.mul.Tensor, local, build.call(aten.to.dtype, inside, torch.int64))
            thin = build.call(aten.embedding.default, f"coordinates_{number}", row)
            part = build.call(aten.linear.default, thin, f"directions_{number}", *(["mean"] if total is None else []))
            total = part if total is None else build.call(aten.add.Tensor, total, part)
        assert total is not None
        return total


def _mean(wanted: Wanted) -> Tensor:
    return (wanted.weights @ wanted.table) / wanted.weights.sum()


def _principal(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [width, width] and what each keeps of the weighted squares, the most first."""
    values, vectors = torch.linalg.eigh(rows.T @ (rows * weights[:, None]))
    return vectors.flip(1), values.flip(0).clamp(min=0)


def _split(values: Tensor, ends: tuple[int, ...]) -> list[Tensor]:
    return [values[first:end] for first, end in zip((0, *ends), ends, strict=False)]


def _ranks(gains: list[Tensor], sizes: list[int], wanted: Wanted, left: float) -> list[int]:
    """Ranks of blocks within so many bytes; every next one of a block keeps less than the one before."""
    costs, ranks = [4.0 * (size + 1 + wanted.width) for size in sizes], [0] * len(sizes)
    queue = [(-float(gain[0]) / cost, number) for number, (gain, cost) in enumerate(zip(gains, costs, strict=True))]
    heapq.heapify(queue)
    while queue:
        _, number = heapq.heappop(queue)
        if costs[number] > left:
            continue
        left, ranks[number] = left - costs[number], ranks[number] + 1
        if ranks[number] < min(sizes[number], wanted.width):
            heapq.heappush(queue, (-float(gains[number][ranks[number]]) / costs[number], number))
    if not any(ranks):
        raise wanted.refuse("blocks", min(costs) + 4 * (wanted.vocabulary + wanted.width))
    return ranks

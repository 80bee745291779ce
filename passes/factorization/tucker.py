"""Tucker decomposition over the channels: 1x1 into fewer channels, a k x k core, 1x1 out of them.

    W[o, c, i, j] = sum over p, q of  B[o, p] G[p, q, i, j] A[q, c]         A: 1x1, in -> q   G: k x k, q -> p   B: 1x1, p -> out

    MACs per position   in out k^2  ->  in q + p q k^2 + p out              (at stride 1)
    error               at most the dropped squared singular values of both unfoldings (the bound of the higher-order SVD, where
                        the search starts)

Found by higher-order orthogonal iteration: each side's basis in turn by an SVD of the weight projected on the other's. A rank
that is full needs no stage of its own: the core takes its place.

Paper:  Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications"; De
        Lathauwer et al. 2000, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of Higher-Order Tensors".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Geometry
from graphopt.passes.factorization.method import Method, Ranks, kernel_of
from graphopt.passes.factorization.ranks import left_basis

ITERATIONS = 50
SETTLED = 1e-7  # relative gain of an iteration that ends them


@dataclass(frozen=True)
class Tucker(Method):
    """Convolutions with a kernel larger than 1; two ranks: (of the inputs, of the outputs)."""

    def refuses(self, layer: Layer) -> str | None:
        if all(k == 1 for k in kernel_of(layer)):
            return "it has no kernel larger than 1; see SVD"
        return None

    def full(self, layer: Layer) -> Ranks:
        taps = kernel_of(layer).numel()
        out, inside = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        return min(inside, out * taps), min(out, inside * taps)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        out, inside, kernel = layer.out_channels // layer.groups, layer.in_channels // layer.groups, kernel_of(layer)
        one = [1] * len(kernel)
        stages = [(ranks[0], inside, *one), (ranks[1], ranks[0], *kernel), (out, ranks[1], *one)]
        return [s for s, kept in zip(stages, _stages(inside, out, ranks), strict=True) if kept]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        inside, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        stages = [Geometry.pointwise(layer), Geometry.along(layer, range(layer.dims)), Geometry.pointwise(layer)]
        return [s for s, kept in zip(stages, _stages(inside, out, ranks), strict=True) if kept]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        out, inside = weight.shape[:2]
        kept = _stages(inside, out, ranks)
        taps = weight.flatten(2)
        before = _basis(taps.transpose(0, 1), ranks[0]) if kept[0] else torch.eye(inside).to(weight)
        after = _basis(taps, ranks[1]) if kept[2] else torch.eye(out).to(weight)
        energy = 0.0
        for _ in range(ITERATIONS if kept[0] and kept[2] else 0):
            before = _basis(torch.einsum("ock,op->cpk", taps, after), ranks[0])
            core = torch.einsum("ock,cq->oqk", taps, before)
            after = _basis(core, ranks[1])
            gained = float((after.T @ core.flatten(1)).square().sum())
            if gained - energy <= SETTLED * gained:
                break
            energy = gained
        core = torch.einsum("ock,op,cq->pqk", taps, after, before).reshape(
            after.shape[1], before.shape[1], *weight.shape[2:]
        )
        one = [1] * (weight.dim() - 2)
        stages = [before.T.reshape(*before.T.shape, *one), core, after.reshape(*after.shape, *one)]
        return [s for s, stays in zip(stages, kept, strict=True) if stays]

    def unfoldings(self, weight: Tensor) -> list[Tensor]:
        return [weight.transpose(0, 1).flatten(1), weight.flatten(1)]


def _stages(inside: int, out: int, ranks: Ranks) -> tuple[bool, bool, bool]:
    """Which of the three stages are needed."""
    return ranks[0] < inside, True, ranks[1] < out


def _basis(tensor: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of a tensor unfolded along its first dimension: [n, rank]."""
    return left_basis(tensor.flatten(1), rank)

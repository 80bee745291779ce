"""Truncated singular value decomposition of a linear layer or a 1x1 convolution.

    W = U S V^T                    W: [out, in]
    y = (U_r S_r^1/2) ((S_r^1/2 V_r^T) x)      in -> r -> out

    MACs per position   in * out  ->  r (in + out)           worth it for  r < in out / (in + out)
    error               |W - W'|^2 = the sum of the dropped s_i^2, the least that any rank r can have

The square root of the singular values goes to either side, so that neither factor has a wider range than the other. A stride
goes to the first stage, which then computes no position in vain.

Paper:  Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation"; for linear
        layers Xue et al. 2013, "Restructuring of Deep Neural Network Acoustic Models with Singular Value Decomposition".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Chain, Geometry
from graphopt.passes.factorization.fitting import Problem, level
from graphopt.passes.factorization.method import Method, Ranks, kernel_of
from graphopt.passes.factorization.ranks import left_basis


@dataclass(frozen=True)
class SVD(Method):
    """Linear layers and 1x1 convolutions as two thin layers; one rank."""

    def refuses(self, layer: Layer) -> str | None:
        kernel = kernel_of(layer)
        if any(k > 1 for k in kernel):
            size = "x".join(map(str, kernel))
            return f"its kernel is {size}, and a plain SVD takes linear layers and kernels of 1; see ChannelWise"
        return None

    def full(self, layer: Layer) -> Ranks:
        out, inside, kernel = self.sizes(layer)
        return (min(out, inside * kernel.numel()),)

    def sizes(self, layer: Layer) -> tuple[int, int, torch.Size]:
        """Of one group: outputs, inputs, kernel."""
        return layer.out_channels // layer.groups, layer.in_channels // layer.groups, kernel_of(layer)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        out, inside, kernel = self.sizes(layer)
        return [(ranks[0], inside, *kernel), (out, ranks[0], *[1] * len(kernel))]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        return [Geometry.along(layer, range(layer.dims)), Geometry.pointwise(layer)]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        left, right = halves(weight.flatten(1), ranks[0])
        return [right.reshape(-1, *weight.shape[1:]), left.reshape(*left.shape, *[1] * (weight.dim() - 2))]

    def fit(self, layer: Layer, problem: Problem, ranks: Ranks, start: Chain | None = None, steps: int = 60) -> Chain:
        out, inside, kernel = self.sizes(layer)
        left, right = problem.principal(ranks[0])
        stages = [right.reshape(-1, inside, *kernel), left.reshape(out, -1, *[1] * len(kernel))]
        return level(self.skeleton(layer, ranks).with_weights(stages), problem.metric)

    def unfoldings(self, weight: Tensor) -> list[Tensor]:
        return [weight.flatten(1)]


def halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[m, r] and [r, n], whose product is the nearest matrix of rank r; singular values split evenly between them."""
    u = left_basis(matrix, rank)
    right = u.T @ matrix
    root = right.norm(dim=1).clamp(min=1e-30).sqrt()
    return u * root, right / root[:, None]

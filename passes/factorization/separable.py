"""A k x k convolution as a k x 1 and a 1 x k convolution.

    W[o, c, i, j] = sum over r of  H[o, r, j] V[r, c, i]           V: k x 1, in -> r     H: 1 x k, r -> out
    W rearranged to [in * k, out * k] = V_r H_r, by truncated SVD

    MACs per position   in out k^2  ->  r k (in + out)
    error               the dropped singular values of the rearranged weight

Stride, padding and dilation go to the stage along whose axis they are. With three spatial dimensions the first is split off.

Paper:  Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions", scheme 2 (section 2.2),
        solved in closed form as by Tai et al. 2016, "Convolutional Neural Networks with Low-rank Regularization", theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Geometry
from graphopt.passes.factorization.method import Method, Ranks, kernel_of
from graphopt.passes.factorization.svd import halves


@dataclass(frozen=True)
class Separable(Method):
    """Convolutions with two or three spatial dimensions, two of which are larger than 1; one rank."""

    def refuses(self, layer: Layer) -> str | None:
        kernel = kernel_of(layer)
        if len(kernel) < 2 or kernel[0] == 1 or all(k == 1 for k in kernel[1:]):
            return f"its kernel is {'x'.join(map(str, kernel)) or 'none'}: nothing to separate"
        return None

    def full(self, layer: Layer) -> Ranks:
        out, inside, (first, *rest) = layer.out_channels, layer.in_channels, kernel_of(layer)
        behind = 1
        for k in rest:
            behind *= k
        return (min(inside // layer.groups * first, out // layer.groups * behind),)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        first, *rest = kernel_of(layer)
        inside, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        return [(ranks[0], inside, first, *[1] * len(rest)), (out, ranks[0], 1, *rest)]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        return [Geometry.along(layer, [0]), Geometry.along(layer, range(1, layer.dims))]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        out, inside, first, *rest = weight.shape
        left, right = halves(self.unfoldings(weight)[0], ranks[0])
        vertical = left.T.reshape(ranks[0], inside, first, *[1] * len(rest))
        return [vertical, right.reshape(ranks[0], out, 1, *rest).transpose(0, 1)]

    def unfoldings(self, weight: Tensor) -> list[Tensor]:
        out, inside, first = weight.shape[:3]
        return [weight.reshape(out, inside, first, -1).permute(1, 2, 0, 3).reshape(inside * first, -1)]

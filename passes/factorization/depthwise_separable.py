"""A k x k convolution as a few k x k filters on each channel alone, and a 1x1 convolution that mixes them.

    W[o, c, i, j] = sum over t of  P[o, c, t] D[c, t, i, j]       D: depthwise k x k, in -> in T      P: 1x1, in T -> out
    W[:, c] as a matrix [out, k * k] = P_c D_c, by truncated SVD, for every input channel c

    MACs per position   in out k^2  ->  in T k^2 + in T out
    error               the dropped squared singular values, summed over the channels: the least for T terms

With T = 1 it is the depthwise separable convolution of MobileNet.

Paper:  Guo et al. 2018, "Network Decoupling: From Regular to Depthwise Separable Convolutions", theorem 1; Howard et al. 2017,
        "MobileNets".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Geometry
from graphopt.passes.factorization.method import Method, Ranks, kernel_of
from graphopt.passes.factorization.ranks import EVBMF, Energy


@dataclass(frozen=True)
class DepthwiseSeparable(Method):
    """Convolutions with a kernel larger than 1; one rank: the filters of each channel."""

    def refuses(self, layer: Layer) -> str | None:
        if all(k == 1 for k in kernel_of(layer)):
            return "it has no kernel larger than 1; see SVD"
        if layer.in_channels == layer.groups:
            return "it is a depthwise convolution already"
        return None

    def full(self, layer: Layer) -> Ranks:
        return (min(layer.out_channels // layer.groups, kernel_of(layer).numel()),)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        out, inside, kernel = layer.out_channels // layer.groups, layer.in_channels // layer.groups, kernel_of(layer)
        return [(inside * ranks[0], 1, *kernel), (out, inside * ranks[0], *[1] * len(kernel))]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        inside = layer.in_channels // layer.groups
        return [Geometry.along(layer, range(layer.dims), groups=inside), Geometry.pointwise(layer)]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        out, inside, *kernel = weight.shape
        u, s, v = torch.linalg.svd(_channels(weight), full_matrices=False)
        root = s[:, : ranks[0]].sqrt()
        mixed = (u[..., : ranks[0]] * root[:, None]).transpose(0, 1)  # [out, in, T]
        filters = root[..., None] * v[:, : ranks[0]]  # [in, T, k * k]
        return [
            filters.reshape(inside * ranks[0], 1, *kernel),
            mixed.reshape(out, inside * ranks[0], *[1] * len(kernel)),
        ]

    def estimate(self, layer: Layer, weight: Tensor, ranks: Sequence[Ranks]) -> list[float]:
        energy = self._spectrum(layer, weight).square()
        return [float(energy[chosen[0] :].sum() / energy.sum().clamp(min=1e-30)) for chosen in ranks]

    def by_rule(self, layer: Layer, weight: Tensor, rule: Energy | EVBMF) -> Ranks:
        """One number for all channels: the energy is that of all together, the rank under noise their mean."""
        if isinstance(rule, Energy):
            return (rule(self._spectrum(layer, weight).diag()),)
        found = [rule(matrix) for part in weight.double().chunk(layer.groups) for matrix in _channels(part)]
        return (round(sum(found) / len(found)),)

    def _spectrum(self, layer: Layer, weight: Tensor) -> Tensor:
        """Singular values of each number, the root of their squares' sum over the channels."""
        parts = torch.cat([_channels(part) for part in weight.double().chunk(layer.groups)])
        values: Tensor = torch.linalg.svdvals(parts)
        together: Tensor = values.norm(dim=0)
        return together


def _channels(weight: Tensor) -> Tensor:
    """The matrix of each input channel: [in, out, k * k]."""
    return weight.flatten(2).transpose(0, 1)

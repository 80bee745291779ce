"""Tensor train of a large linear layer: small matrices, one for every pair of an input and an output mode.

    W[o1 .. od, i1 .. id] = G1[o1, i1] G2[o2, i2] .. Gd[od, id]       in = I1 .. Id, out = O1 .. Od
                                                                      Gk[ok, ik]: a matrix [r_(k-1), rk],  r0 = rd = 1

Executed from the first mode to the last; each step is one small linear layer on the features seen as a tensor:

    [.., Ik, I_(>k), O_(<k), r_(k-1)]     permuted to [.., I_(>k), O_(<k), (r_(k-1) Ik)]
                                          linear to   [.., I_(>k), O_(<k), (Ok rk)]

    MACs    in out  ->  sum over k of  I_(>k) O_(<k) (r_(k-1) Ik) (Ok rk)
    error   |W - W'|^2 <= the dropped squared singular values of the unfoldings [O1 I1 .. Ok Ik, the rest], summed over k

Found by TT-SVD: from the left, a truncated SVD of what is left for every rank.

Needs:  a linear layer whose sizes have factors. Its bias, if any, is added behind the last stage.
Paper:  Novikov et al. 2015, "Tensorizing Neural Networks"; Oseledets 2011, "Tensor-Train Decomposition", theorem 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Chain, Geometry, View
from graphopt.passes.factorization.fitting import level
from graphopt.passes.factorization.method import Method, Ranks
from graphopt.passes.factorization.modes import Split, check_split, modes_of, product, refuses, tensorized


@dataclass(frozen=True)
class TensorTrain(Method):
    """Linear layers; a rank between each two modes.

    Attributes:
        modes: how many factors the sizes are taken apart into, as even as they can be; or the factors themselves, those of
            the input and those of the output: `((8, 4, 8), (4, 8, 10))`.
    """

    modes: Split = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_split(self.modes)

    def refuses(self, layer: Layer) -> str | None:
        return refuses(self.modes, layer)

    def full(self, layer: Layer) -> Ranks:
        sizes = modes_of(self.modes, layer).pairs
        return tuple(min(product(sizes[:k]), product(sizes[k:])) for k in range(1, len(sizes)))

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        modes, bonds = modes_of(self.modes, layer), (1, *ranks, 1)
        steps = zip(modes.out, modes.inside, bonds[:-1], bonds[1:], strict=True)
        return [(o * right, left * i) for o, i, left, right in steps]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        modes, bonds = modes_of(self.modes, layer), (1, *ranks)
        found = list[Geometry]()
        for k, (i, bond) in enumerate(zip(modes.inside, bonds, strict=True)):
            sizes = (i, product(modes.inside[k + 1 :]), product(modes.out[:k]), bond)
            found.append(Geometry(view=View.of(sizes, (1, 2, 3, 0), (bond * i,))))
        return found

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        modes = modes_of(self.modes, weight)
        rest, left, found = tensorized(weight, modes), 1, list[Tensor]()
        for o, i, rank in zip(modes.out, modes.inside, (*ranks, 1), strict=True):
            rest = rest.reshape(left * o * i, -1)
            if len(found) < len(ranks):
                core, rest = _split(rest, rank)
            else:
                core = rest
            found.append(core.reshape(left, o, i, rank).permute(1, 3, 0, 2).reshape(o * rank, left * i))
            left = rank
        return found

    def decompose(self, layer: Layer, weight: Tensor, ranks: Ranks) -> Chain:
        return level(super().decompose(layer, weight, ranks), None)

    def unfoldings(self, weight: Tensor) -> list[Tensor]:
        modes = modes_of(self.modes, weight)
        tensor = tensorized(weight, modes)
        return [tensor.reshape(product(modes.pairs[:k]), -1) for k in range(1, len(modes.pairs))]


def _split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors and the matrix in their terms, with zeros for a rank above what the matrix can have."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    missing = max(0, rank - len(s))
    return F.pad(u[:, :rank], (0, missing)), F.pad((s[:, None] * v)[:rank], (0, 0, 0, missing))

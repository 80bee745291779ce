"""Block-term decomposition of a large linear layer: a sum of small Tucker decompositions.

    W[o1 .. od, i1 .. id] = sum over n of  Gn x1 An1[o1, i1] x2 An2[o2, i2] .. xd And[od, id]
                                           Gn: a core [R1 .. Rd]      Ank[ok, ik]: a vector [Rk]     n = 1 .. N

Executed on the features seen as a tensor, all terms side by side:

    linear       [.., I1]                -> [.., (n R1 O1)]         the first factors
    grouped 1x1  [n, R1]                 -> [n, (R2 .. Rd)]         the cores
    grouped 1x1  [n, (Rk Ik)]            -> [n, Ok]                 the factors between, k = 2 .. d - 1
    linear       [.., (n Rd Id)]         -> [.., Od]                the last factors, which add the terms up

Found by alternating least squares: each term in turn is the Tucker decomposition (one sweep of higher-order orthogonal iteration)
of what the others leave of the weight, so the error never rises and no core is larger than the weight.

Needs:  a linear layer whose sizes have factors. Its bias, if any, is added behind the last stage.
Paper:  Ye et al. 2018, "Learning Compact Recurrent Neural Networks with Block-Term Tensor Decomposition"; De Lathauwer and Nion
        2008, "Decompositions of a Higher-Order Tensor in Block Terms, Part III: Alternating Least Squares Algorithms".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Chain, Geometry, View
from graphopt.passes.factorization.fitting import level
from graphopt.passes.factorization.method import Method, Ranks
from graphopt.passes.factorization.modes import Modes, Split, check_split, modes_of, product, refuses, tensorized
from graphopt.passes.factorization.ranks import EVBMF, Energy
from graphopt.utils.checks import check_count

SWEEPS = 200
SETTLED = 1e-5  # relative gain of a sweep that ends them


@dataclass(frozen=True)
class BlockTerm(Method):
    """Linear layers; one rank, that of every mode of every term (a mode that is smaller has its own size).

    Attributes:
        terms: how many Tucker decompositions are added up.
        modes: as of `TensorTrain`.
    """

    terms: int = field(default=2, kw_only=True)
    modes: Split = field(default=3, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("terms", self.terms)
        check_split(self.modes)

    def refuses(self, layer: Layer) -> str | None:
        return refuses(self.modes, layer)

    def full(self, layer: Layer) -> Ranks:
        return (max(_multilinear(modes_of(self.modes, layer))),)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        modes, n = modes_of(self.modes, layer), self.terms
        r = _clipped(modes, ranks[0])
        between = zip(modes.out[1:-1], modes.inside[1:-1], r[1:-1], strict=True)
        return [
            (n * r[0] * modes.out[0], modes.inside[0]),
            (n * product(r[1:]), r[0], 1),
            *((n * o, rank * i, 1) for o, i, rank in between),
            (modes.out[-1], n * r[-1] * modes.inside[-1]),
        ]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        modes, n = modes_of(self.modes, layer), self.terms
        (i, *inside), (o, *out), (r, *rest) = modes.inside, modes.out, _clipped(modes, ranks[0])
        spread = View.of((i, product(inside)), (1, 0), (i,))
        cores = View.of((product(inside), n * r, o), (1, 0, 2), (n * r, product(inside) * o))
        found = [Geometry(view=spread), _grouped(n, cores)]
        before, done = 1, o  # outputs of the mode in front, and of those in front of it
        for k, rank in enumerate(rest):
            sizes = (n, before, rank, product(rest[k + 1 :]), inside[k], product(inside[k + 1 :]), done)
            channels = n * rank * inside[k]
            if k < len(rest) - 1:
                view = View.of(sizes, (0, 2, 4, 3, 5, 6, 1), (channels, product(sizes) // channels))
                found.append(_grouped(n, view))
            else:
                found.append(Geometry(view=View.of(sizes, (6, 1, 0, 2, 4, 3, 5), (channels,))))
            before, done = out[k], done * before
        return found

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        modes = modes_of(self.modes, weight)
        r = _clipped(modes, ranks[0])
        terms = alternate(tensorized(weight, modes), r, self.terms)
        cores = torch.stack([core for core, _ in terms])  # [n, R1, .., Rd]
        factors = [
            torch.stack(parts).reshape(self.terms, o, i, rank)
            for parts, o, i, rank in zip(
                zip(*(bases for _, bases in terms), strict=True), modes.out, modes.inside, r, strict=True
            )
        ]  # of each mode [n, Ok, Ik, Rk]
        first, *between, last = factors
        return [
            first.permute(0, 3, 1, 2).reshape(-1, modes.inside[0]),
            cores.flatten(2).transpose(1, 2).reshape(-1, r[0], 1),
            *(f.permute(0, 1, 3, 2).reshape(self.terms * f.shape[1], -1, 1) for f in between),
            last.permute(1, 0, 3, 2).reshape(modes.out[-1], -1),
        ]

    def decompose(self, layer: Layer, weight: Tensor, ranks: Ranks) -> Chain:
        return level(super().decompose(layer, weight, ranks), None)

    def by_rule(self, layer: Layer, weight: Tensor, rule: Energy | EVBMF) -> Ranks:
        """Under noise, the largest rank of the modes, shared between the terms."""
        if isinstance(rule, Energy):
            return super().by_rule(layer, weight, rule)
        tensor = tensorized(weight.double(), modes_of(self.modes, layer))
        return (math.ceil(max(rule(tensor.movedim(k, 0).flatten(1)) for k in range(tensor.dim())) / self.terms),)


def alternate(tensor: Tensor, ranks: tuple[int, ...], count: int) -> list[tuple[Tensor, list[Tensor]]]:
    """Tucker decompositions whose sum is near to a tensor: of each the core [R1 .. Rd], and a basis [size, Rk] of each mode."""
    left, terms = tensor, list[tuple[Tensor, list[Tensor]]]()
    for _ in range(count):
        bases = [_basis(left.movedim(k, 0), rank) for k, rank in enumerate(ranks)]
        terms.append(_sweep(left, bases))
        left = left - _expand(*terms[-1])
    error = float(left.square().sum())
    for _ in range(SWEEPS if count > 1 else 20):
        for n, (core, bases) in enumerate(terms):
            wanted = left + _expand(core, bases)
            terms[n] = _sweep(wanted, bases)
            left = wanted - _expand(*terms[n])
        before, error = error, float(left.square().sum())
        if before - error <= SETTLED * before:
            break
    return terms


def _sweep(tensor: Tensor, bases: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Each basis in turn from the tensor projected on the others, and the core that goes with them."""
    bases = list(bases)
    for k, basis in enumerate(bases):
        others = [None if j == k else b for j, b in enumerate(bases)]
        bases[k] = _basis(_project(tensor, others).movedim(k, 0), basis.shape[1])
    return _project(tensor, list(bases)), bases


def _project(tensor: Tensor, bases: list[Tensor | None]) -> Tensor:
    for k, basis in enumerate(bases):
        if basis is not None:
            tensor = torch.tensordot(tensor, basis, ([k], [0])).movedim(-1, k)
    return tensor


def _expand(core: Tensor, bases: list[Tensor]) -> Tensor:
    transposed: list[Tensor | None] = [basis.T for basis in bases]
    return _project(core, transposed)


def _basis(tensor: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of a tensor unfolded along its first dimension: [size, rank]."""
    matrix = tensor.flatten(1)
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T)[1]
    return vectors.flip(1)[:, :rank]


def _multilinear(modes: Modes) -> tuple[int, ...]:
    """The rank of each mode at which one term is exact."""
    return tuple(min(size, product(modes.pairs) // size) for size in modes.pairs)


def _clipped(modes: Modes, rank: int) -> tuple[int, ...]:
    return tuple(min(rank, most) for most in _multilinear(modes))


def _grouped(groups: int, view: View) -> Geometry:
    return Geometry("conv", groups, (1,), (0,), (1,), (0,), view)

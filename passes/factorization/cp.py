"""CP decomposition: a 1x1, a depthwise filter along each axis, and a 1x1.

    W[o, c, i, j] = sum over r of  D[o, r] H[r, j] V[r, i] A[r, c]      A: 1x1, in -> R          V: depthwise k x 1
                                                                        H: depthwise 1 x k       D: 1x1, R -> out

    MACs per position   in out k^2  ->  R (in + 2 k + out)

Found by alternating least squares: with the other factors' columns at norm one, a factor is the solution of

    F (G + m I) = B        B: the weight, contracted with all other factors      G: their Gram matrices, multiplied elementwise

On the way m falls from large to none, which keeps components from growing against each other. Where they did, the norms are
corrected at the same error: m is made as large in each update as the error allows, which is the smallest sum of |component|^2
within it. Descent and correction alternate, from several starts; of them the smallest error counts.

Without a limit to the norms the best approximation may not even exist: components diverge and cancel, and factors like that
neither train nor quantize.

Paper:  Lebedev et al. 2015, "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition"; Phan et al. 2020,
        "Stable Low-Rank Tensor Decomposition for Compression of Convolutional Neural Network", section 3 (correction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import Geometry
from graphopt.passes.factorization.method import Method, Ranks, kernel_of
from graphopt.passes.factorization.ranks import EVBMF, Energy

WARM, DESCENT, CORRECTION, ROUNDS = 40, 150, 60, 3  # sweeps of each kind, and how often the last two are done
SETTLED = 1e-5  # relative gain of ten sweeps that ends them
SLACK = (
    2.5e-3,
    1e-2,
)  # of the squared error, that the correction may add: where components are small, and where they are not
LARGE = 2.0  # norm of all components, by that of the tensor
ENOUGH = 1e-3  # relative gain of a sweep of correction that ends them
LEAST = 1e-12  # ridge, of the largest eigenvalue


@dataclass(frozen=True)
class CP(Method):
    """Convolutions of any dimension and direction with a kernel larger than 1; one rank."""

    def refuses(self, layer: Layer) -> str | None:
        if all(k == 1 for k in kernel_of(layer)):
            return "it has no kernel larger than 1; see SVD"
        return None

    def full(self, layer: Layer) -> Ranks:
        sizes = (layer.out_channels // layer.groups, layer.in_channels // layer.groups, *kernel_of(layer))
        return (math.prod(sizes) // max(sizes),)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        kernel, one = kernel_of(layer), [1] * layer.dims
        along = [tuple(kernel[a] if a in axes else 1 for a in range(layer.dims)) for axes in _axes(kernel)]
        first = (ranks[0], layer.in_channels // layer.groups, *one)
        last = (layer.out_channels // layer.groups, ranks[0], *one)
        return [first, *((ranks[0], 1, *size) for size in along), last]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        along = [Geometry.along(layer, axes, groups=ranks[0]) for axes in _axes(kernel_of(layer))]
        return [Geometry.pointwise(layer), *along, Geometry.pointwise(layer)]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        kernel = weight.shape[2:]
        out, inside, *spatial = decompose(weight.reshape(*weight.shape[:2], *(k for k in kernel if k > 1)), ranks[0])
        one = [1] * len(kernel)
        stages = [inside.T.reshape(-1, weight.shape[1], *one)]
        for factor, axes in zip(spatial, _axes(kernel), strict=True):
            stages.append(factor.T.reshape(-1, 1, *(kernel[a] if a in axes else 1 for a in range(len(kernel)))))
        return [*stages, out.reshape(*out.shape, *one)]

    def by_rule(self, layer: Layer, weight: Tensor, rule: Energy | EVBMF) -> Ranks:
        """Under noise, the largest of the unfoldings' ranks: no fewer components can have them."""
        if isinstance(rule, Energy):
            return super().by_rule(layer, weight, rule)
        parts = weight.double().chunk(layer.groups)
        return (max(rule(part.movedim(mode, 0).flatten(1)) for part in parts for mode in (0, 1)),)


def _axes(kernel: Sequence[int]) -> list[list[int]]:
    """The axes of each depthwise stage: one that is longer than 1; those of length 1 go with the first."""
    long = [axis for axis, k in enumerate(kernel) if k > 1]
    first = [axis for axis, k in enumerate(kernel) if k == 1 or axis == long[0]]
    return [first, *([axis] for axis in long[1:])]


# ---- Alternating least squares --------------------------------------------------------------------------------------


def decompose(tensor: Tensor, rank: int) -> list[Tensor]:
    """Factors [size, rank], one for each dimension, the sum of whose outer products is near to a tensor.

    The norm of every component is shared evenly by its factors. Exact from the rank on that a sum of single fibres has.
    """
    if rank >= tensor.numel() // max(tensor.shape):
        return _even(_fibres(tensor, rank))
    power = float(tensor.square().sum())
    if power == 0:
        return [tensor.new_zeros(size, rank) for size in tensor.shape]
    search = _Search(tensor / math.sqrt(power))
    starts = [
        search.warm(start) for start in (_leading(tensor, rank), _random(tensor, rank, 0), _random(tensor, rank, 1))
    ]
    best = search.refine(min(starts, key=lambda found: found[1])[0])
    return _even([best[0] * math.sqrt(power), *best[1:]])


class _Search:
    """Sweeps over the factors of one tensor of norm 1. The first factor carries the norms, the others' columns have norm 1."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def warm(self, factors: list[Tensor]) -> tuple[list[Tensor], float]:
        """From any factors, with a ridge that falls."""
        error = math.inf
        for sweep in range(WARM):
            factors, error = self.sweep(factors, ridge=0.3 * 0.6**sweep)
        return factors, error

    def refine(self, factors: list[Tensor]) -> list[Tensor]:
        """Descend and correct in turn; the last word has the correction."""
        for _ in range(ROUNDS):
            factors, error = self.descend(factors)
            bound, before = error * (1 + SLACK[float(factors[0].norm()) > LARGE]), math.inf
            for _ in range(CORRECTION):
                factors, _ = self.sweep(factors, bound=bound)
                size = float(factors[0].norm())
                if size > before * (1 - ENOUGH):
                    break
                before = size
        return factors

    def descend(self, factors: list[Tensor]) -> tuple[list[Tensor], float]:
        errors: list[float] = []
        for _ in range(DESCENT):
            factors, error = self.sweep(factors)
            errors.append(error)
            if len(errors) > 10 and errors[-11] - error <= SETTLED * error:
                break
        return factors, errors[-1]

    def sweep(
        self, factors: list[Tensor], ridge: float = 0.0, bound: float | None = None
    ) -> tuple[list[Tensor], float]:
        """Update every factor once, the first one last, with a ridge or with the largest that a bound of the squared error
        allows; the squared error then."""
        first, *rest = factors
        left = torch.tensordot(_unit(first), self.tensor, ([0], [0]))  # [rank, sizes of the rest]
        for number in range(len(rest)):
            others = [_unit(first), *rest[:number], *rest[number + 1 :]]
            rest[number] = _unit(_solve(_contract(left, rest[number + 1 :]), others, ridge, bound)[0])
            left = torch.einsum("ra...,ar->r...", left, rest[number])
        target = torch.tensordot(self.tensor, rest[0], ([1], [0])).movedim(-1, 0)  # [rank, first, other sizes]
        first, error = _solve(_contract(target, rest[1:]), rest, ridge, bound)
        return [first, *rest], error


def _contract(left: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """[rank, size, *sizes] with the factors of the last sizes: [size, rank]."""
    for factor in reversed(factors):
        left = torch.einsum("r...a,ar->r...", left, factor)
    return left.T


def _solve(target: Tensor, others: Sequence[Tensor], ridge: float, bound: float | None) -> tuple[Tensor, float]:
    """The factor [size, rank] whose components are nearest to a tensor of norm 1, with a ridge; and the squared error."""
    gram = torch.ones(target.shape[1], target.shape[1], dtype=target.dtype, device=target.device)
    for other in others:
        gram = gram * (other.T @ other)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    turned = target @ vectors
    shares = turned.square().sum(0)
    if bound is not None:
        ridge = largest_ridge(values, shares, bound)
    ridge += LEAST * float(values[-1])
    return turned / (values + ridge) @ vectors.T, max(0.0, float(_error(values, shares, ridge)))


def _error(values: Tensor, shares: Tensor, ridge: float) -> Tensor:
    """|T - F K^T|^2 with |T| = 1, as a function of the ridge, in the basis of the Gram matrix's eigenvectors."""
    return 1 - (shares * (values + 2 * ridge) / (values + ridge).square()).sum()


def largest_ridge(values: Tensor, shares: Tensor, bound: float) -> float:
    """The largest ridge with which the squared error stays within a bound."""
    low, high = math.log(LEAST * float(values[-1])), math.log(1e3 * float(values[-1]))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_error(values, shares, math.exp(middle))) <= bound else (low, middle)
    return math.exp(low)


# ---- Starts and ends ------------------------------------------------------------------------------------------------


def _leading(tensor: Tensor, rank: int) -> list[Tensor]:
    """The leading singular vectors of every unfolding, random columns where there are too few."""
    found = _random(tensor, rank, 2)
    for mode, factor in enumerate(found):
        matrix = tensor.movedim(mode, 0).flatten(1)
        vectors = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :rank]
        factor[:, : vectors.shape[1]] = vectors
    return found


def _random(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in tensor.shape]
    return [_unit(factor).to(tensor) for factor in draw]


def _fibres(tensor: Tensor, rank: int) -> list[Tensor]:
    """One component for each fibre along the longest dimension; zeros for the rest of the rank."""
    longest = max(range(tensor.dim()), key=lambda mode: tensor.shape[mode])
    others = [size for mode, size in enumerate(tensor.shape) if mode != longest]
    count = math.prod(others)
    places = iter(torch.unravel_index(torch.arange(count), others))
    found = []
    for mode, size in enumerate(tensor.shape):
        factor = tensor.new_zeros(size, rank)
        if mode == longest:
            factor[:, :count] = tensor.movedim(mode, 0).flatten(1)
        else:
            factor[next(places), torch.arange(count)] = 1
        found.append(factor)
    return found


def _unit(factor: Tensor) -> Tensor:
    """With columns of norm 1."""
    found: Tensor = factor / factor.norm(dim=0).clamp(min=1e-30)
    return found


def _even(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same components with their norm shared evenly by the factors."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    share = norms.prod(0) ** (1 / len(factors))
    return [factor / norm.clamp(min=1e-30) * share for factor, norm in zip(factors, norms, strict=True)]

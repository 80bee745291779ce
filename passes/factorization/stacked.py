"""A large kernel as a stack of kernels of 3: 5x5 as two, 7x7 as three of them.

    W[o, c, t] = sum over m and s of  A[o, m, s] B[m, c, t - s]        B: 3x3, in -> m, first      A: the rest, m -> out

    MACs per position   in out k^2  ->  9 (in m1 + m1 m2 + .. + m out)        at stride 1; (k - 1) / 2 stages

All padding is in front of the first stage, so that zeros are met where the layer has them, and the stride is that of the last. A
transposed convolution is the mirror image: stride and output padding at the first stage, and the padding, which crops there, at
the last. A dilation is everyone's.

Given the other stages each enters linearly. First stage and rest are solved for in turn by least squares, then the rest is
stacked itself, and L-BFGS on all stages ends the search. The normal equations need no patches: their entries are the correlations
of the known kernel at the lags between two taps.

Needs:  an odd kernel of at least 5; other dimensions may be shorter, but odd.
Exact:  at 2^n min(in, out) channels for a kernel of 5 in n dimensions: kernels of 3, placed by the taps of the other stage in the
        corners, cover it.
Paper:  Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", section 2.3; Szegedy et al. 2016, "Rethinking the
        Inception Architecture", section 3.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.layer import Layer
from graphopt.passes.factorization.chain import COMPOSE, Chain, Geometry, Stage, compose
from graphopt.passes.factorization.fitting import Problem, descend, level
from graphopt.passes.factorization.method import Method, Ranks, kernel_of

Index: TypeAlias = tuple[Any, ...]
WARM, SWEEPS = 20, 150  # from every start, and from the best of them
SETTLED = 1e-4  # relative gain of a sweep that ends them
POLISH = 150  # iterations of L-BFGS
RIDGE = 1e-9  # of the mean of the diagonal


@dataclass(frozen=True)
class StackedKernels(Method):
    """Convolutions with odd kernels of at least 5; a rank for each boundary between two stages."""

    def refuses(self, layer: Layer) -> str | None:
        kernel = kernel_of(layer)
        size = "x".join(map(str, kernel)) or "none"
        if not kernel or max(kernel) < 5:
            return f"its kernel is {size}, and only one of at least 5 is a stack of kernels of 3"
        if any(k % 2 == 0 for k in kernel):
            return f"its kernel is {size}, and only odd sizes are stacks of kernels of 3"
        return None

    def full(self, layer: Layer) -> Ranks:
        out, inside = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        rest, found = tuple(kernel_of(layer)), []
        for kernel in _kernels(rest)[:-1]:
            inside = _exact(out, inside, rest, kernel)
            rest = _left(rest, kernel)
            found.append(inside)
        return tuple(found)

    def shapes(self, layer: Layer, ranks: Ranks) -> list[tuple[int, ...]]:
        widths = (layer.in_channels // layer.groups, *ranks, layer.out_channels // layer.groups)
        kernels = _kernels(kernel_of(layer))
        return [(o, i, *k) for o, i, k in zip(widths[1:], widths[:-1], kernels, strict=True)]

    def geometry(self, layer: Layer, ranks: Ranks) -> list[Geometry]:
        one, none, dilation = (1,) * layer.dims, (0,) * layer.dims, layer.dilation
        plain = Geometry(layer.kind, 1, one, none, dilation, none)
        if layer.kind == "conv_transpose":
            first = Geometry(layer.kind, 1, layer.stride, none, dilation, layer.output_padding)
            last = Geometry(layer.kind, 1, one, layer.padding, dilation, none)
        else:
            first = Geometry(layer.kind, 1, one, layer.padding, dilation, none)
            last = Geometry(layer.kind, 1, layer.stride, none, dilation, none)
        return [first, *[plain] * (len(ranks) - 1), last]

    def factor(self, weight: Tensor, ranks: Ranks) -> list[Tensor]:
        rest, stages, exact = weight, list[Tensor](), True
        for kernel, rank in zip(_kernels(weight.shape[2:]), ranks, strict=False):
            exact = exact and rank >= _exact(len(rest), rest.shape[1], rest.shape[2:], kernel)
            first, rest = _placed(rest, kernel, rank) if exact else halve(rest, kernel, rank)
            stages.append(first)
        stages.append(rest)
        chain = Chain(tuple(Stage(w, Geometry("conv")) for w in stages))
        if exact:
            return level(chain, None).weights
        matrix = weight.flatten(1)
        problem = Problem(matrix, torch.eye(matrix.shape[1]).to(matrix))
        return level(descend(chain, problem, POLISH), None).weights


def _kernels(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Of each stage: 3 along the axes that are not covered yet, 1 along the others."""
    count = max(k // 2 for k in kernel)
    return [tuple(3 if number < k // 2 else 1 for k in kernel) for number in range(count)]


def _left(whole: Sequence[int], first: Sequence[int]) -> tuple[int, ...]:
    """The kernel that stands behind another, for both to be a whole one."""
    return tuple(k - f + 1 for k, f in zip(whole, first, strict=True))


# ---- Two stages -----------------------------------------------------------------------------------------------------


def _exact(out: int, inside: int, whole: Sequence[int], first: Sequence[int]) -> int:
    """Channels between a first stage and the rest with which they can be any kernel."""
    return min(inside * _places(whole, _left(whole, first)), out * _places(whole, first))


def _places(whole: Sequence[int], piece: Sequence[int]) -> int:
    return math.prod(-(-k // p) for k, p in zip(whole, piece, strict=True))


def _cover(whole: Sequence[int], piece: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Where pieces begin that cover a kernel."""
    along = [[min(n * p, k - p) for n in range(-(-k // p))] for k, p in zip(whole, piece, strict=True)]
    return itertools.product(*along)


def _placed(weight: Tensor, kernel: Sequence[int], rank: int) -> tuple[Tensor, Tensor]:
    """A first stage with this kernel and the rest, exactly: one of them has the pieces of the weight, the other puts each in its
    place by a single tap."""
    out, inside, *whole = weight.shape
    rest = _left(whole, kernel)
    first_has_pieces = out * _places(whole, kernel) < inside * _places(whole, rest)
    piece, taps = (kernel, rest) if first_has_pieces else (rest, kernel)
    if not first_has_pieces:
        weight = weight.transpose(0, 1)
    count, used = len(weight), torch.zeros(*whole, dtype=torch.bool)
    pieces = weight.new_zeros(rank, weight.shape[1], *piece)
    places = weight.new_zeros(count, rank, *taps)
    for number, start in enumerate(_cover(whole, piece)):
        rows = slice(number * count, (number + 1) * count)
        here: Index = tuple(slice(s, s + p) for s, p in zip(start, piece, strict=True))
        window: Index = (slice(None), slice(None), *here)
        tap: Index = (slice(None), rows, *start)
        pieces[rows] = weight[window] * ~used[here]
        places[tap] = torch.eye(count).to(weight)
        used[here] = True
    return (pieces, places) if first_has_pieces else (places.transpose(0, 1), pieces.transpose(0, 1))


def halve(weight: Tensor, kernel: Sequence[int], rank: int) -> tuple[Tensor, Tensor]:
    """A first stage with this kernel and the rest, by alternating least squares: [rank, in, *kernel], [out, rank, *rest]."""
    found = [_alternate(weight, first, WARM) for first in _starts(weight, kernel, rank)]
    best = min(found, key=lambda each: each[2])
    return _alternate(weight, best[0], SWEEPS)[:2]


def _alternate(weight: Tensor, first: Tensor, sweeps: int) -> tuple[Tensor, Tensor, float]:
    """Both stages in turn from a first one, and the squared error they end with."""
    kernel, error = first.shape[2:], math.inf
    rest = _left(weight.shape[2:], kernel)
    for _ in range(sweeps):
        behind = _behind(weight, first, rest)
        first = _behind(weight.transpose(0, 1), behind.transpose(0, 1), kernel).transpose(0, 1)
        before, error = error, float((compose(Stage(behind, Geometry("conv")), first) - weight).square().sum())
        if before - error <= SETTLED * error:
            break
    return first, behind, error


def _starts(weight: Tensor, kernel: Sequence[int], rank: int) -> Iterator[Tensor]:
    """First stages to begin with: the strongest filters in the middle of the weight, and random ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = (rank, weight.shape[1], *kernel)
    noise, other = (torch.randn(sizes, generator=generator, dtype=torch.float64).to(weight) for _ in range(2))
    yield noise
    yield other
    here = (slice((w - k) // 2, (w - k) // 2 + k) for w, k in zip(weight.shape[2:], kernel, strict=True))
    middle: Index = (slice(None), slice(None), *here)
    v = torch.linalg.svd(weight[middle].flatten(1), full_matrices=False)[2][:rank]
    yield torch.cat([v.reshape(-1, *sizes[1:]), other[len(v) :]])


def _behind(weight: Tensor, first: Tensor, rest: Sequence[int]) -> Tensor:
    """The least-squares stage [out, m, *rest] behind a first one [m, in, *kernel]."""
    dims, m = len(rest), len(first)
    lags = COMPOSE[dims](first, first, padding=[k - 1 for k in first.shape[2:]])  # [m, m, *(2 kernel - 1)]
    reach = [max(0, r - k) for r, k in zip(rest, first.shape[2:], strict=True)]  # lags at which nothing overlaps
    lags = F.pad(lags, [amount for r in reversed(reach) for amount in (r, r)])
    taps = torch.cartesian_prod(*(torch.arange(r) for r in rest)).reshape(-1, dims)
    apart = taps[None] - taps[:, None] + torch.tensor([size // 2 for size in lags.shape[2:]])
    index: Index = (slice(None), slice(None), *apart.unbind(-1))
    gram = lags[index]  # [m, m, taps, taps]
    gram = gram.permute(0, 2, 1, 3).reshape(m * len(taps), m * len(taps))
    seen = COMPOSE[dims](weight, first).flatten(1)  # [out, m * taps]
    gram = gram + RIDGE * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram)).to(gram)
    found: Tensor = torch.linalg.solve(gram, seen.T)
    return found.T.reshape(-1, m, *rest)

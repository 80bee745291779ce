"""Which bits stand for features: one method a function from features to the signs that are taken.

    code = x[columns] > thresholds      mean, median      one bit for each of the features that vary most
    code = W x + b > 0                  the others        W: [bits, width]   b = -W mean

    pca      W = V^T                    V: the eigenvectors of the covariance with the largest eigenvalues, [width, bits]
    itq      W = R^T V^T                R: the rotation that brings V^T x closest to its signs
    random   W of independent normals   the angle between features, in expectation

ITQ takes turns: the signs B = sign(Z R) of the projected features Z [N, bits], then the rotation with the least |B - Z R|^2, an
orthogonal Procrustes problem: R = P Q^T of the singular value decomposition Z^T B = P S Q^T. Directions in which classes lie
far apart decide all bits then. With `whitening` w each column of Z is divided by its deviation to the power w first; 0 is the
paper's.

Papers: Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", section 2; Charikar
        2002, "Similarity Estimation Techniques from Rounding Algorithms", section 3, for random projections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from graphopt.utils.errors import InputError

Method = Literal["mean", "median", "pca", "itq", "random"]
TURNS = 50  # of ITQ, as in the paper
FLAT = 1e-10  # of the largest variance: a direction with less is constant but for rounding
ADVICE = "take fewer bits, or method='random', which gives as many as are wanted"


@dataclass(frozen=True)
class Thresholds:
    """`x[columns] > thresholds`; both [bits]."""

    columns: Tensor
    thresholds: Tensor


@dataclass(frozen=True)
class Projection:
    """`W x + b > 0`; weight W [bits, width], bias b [bits]."""

    weight: Tensor
    bias: Tensor


Signs = Thresholds | Projection
Fitted = Callable[..., Signs]  # of features [samples, width], bits, a generator of random numbers


def mean(features: Tensor, bits: int, generator: torch.Generator) -> Thresholds:
    columns = _varying(features, bits, "mean")
    return Thresholds(columns, features.mean(0)[columns])


def median(features: Tensor, bits: int, generator: torch.Generator) -> Thresholds:
    """Half of the samples above it, where they differ: the mean of the two in the middle of an even number."""
    columns = _varying(features, bits, "median")
    return Thresholds(columns, torch.quantile(features[:, columns], 0.5, dim=0))


def pca(features: Tensor, bits: int, generator: torch.Generator) -> Projection:
    return _centred(_principal(features, bits, "pca").T, features)


def itq(features: Tensor, bits: int, generator: torch.Generator, whitening: float = 0.0) -> Projection:
    principal, centred = _principal(features, bits, "itq"), features - features.mean(0)
    principal = principal / (centred @ principal).std(0) ** whitening
    return _centred((principal @ rotate(centred @ principal, generator)).T, features)


def random(features: Tensor, bits: int, generator: torch.Generator) -> Projection:
    if float(features.var(0).max()) == 0:
        raise InputError("all features are constant on the data: no bit would tell samples apart")
    return _centred(torch.randn(bits, features.shape[1], dtype=features.dtype, generator=generator), features)


METHODS: Mapping[Method, Fitted] = MappingProxyType(
    {"mean": mean, "median": median, "pca": pca, "itq": itq, "random": random}
)


def rotate(projected: Tensor, generator: torch.Generator, turns: int = TURNS) -> Tensor:
    """The rotation [bits, bits] of ITQ for centred projections [N, bits], from a random one."""
    start = torch.randn(projected.shape[1], projected.shape[1], dtype=projected.dtype, generator=generator)
    rotation: Tensor = torch.linalg.qr(start)[0]
    for _ in range(turns):
        signs = torch.where(projected @ rotation > 0, 1.0, -1.0).to(projected)
        left, _, right = torch.linalg.svd(projected.T @ signs)
        rotation = left @ right
    return rotation


def _centred(weight: Tensor, features: Tensor) -> Projection:
    return Projection(weight, -weight @ features.mean(0))


def _varying(features: Tensor, bits: int, method: str) -> Tensor:
    """The columns that vary most, [bits], in order."""
    variance = features.var(0)
    _enough(int((variance > FLAT * variance.max()).sum()), features.shape[1], bits, method, "features that vary")
    columns: Tensor = variance.topk(bits).indices.sort().values
    return columns


def _principal(features: Tensor, bits: int, method: str) -> Tensor:
    """Directions of the largest variance, [width, bits], the largest first."""
    if len(features) <= bits:
        raise InputError(
            f"{bits} bits of {method!r} need more than {bits} samples, the data have {len(features)}; give more, or "
            f"take fewer bits"
        )
    variance, directions = torch.linalg.eigh(torch.cov(features.T).reshape(features.shape[1], -1))
    known = int((variance > FLAT * variance.max()).sum())
    _enough(known, features.shape[1], bits, method, "directions that features vary in")
    largest: Tensor = directions.flip(1)[:, :bits]
    return largest


def _enough(known: int, width: int, bits: int, method: str, what: str) -> None:
    if known < bits:
        raise InputError(f"{method!r} cannot give {bits} bits: of {width} features there are {known} {what}; {ADVICE}")

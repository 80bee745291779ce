"""What is compared of the values of a place; N samples, C channels, P positions.

Each takes the values of one place (two where a place has two) and gives a tensor, or several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12
POOLS: tuple[Callable[[Any], nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def as_is(*values: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The value itself; where there are several, all of them."""
    return values[0] if len(values) == 1 else values


def attention_map(value: Tensor, power: int = 2) -> Tensor:
    """[N, P]: the sum of |x|^power over channels, of norm one. Zagoruyko and Komodakis 2017."""
    return F.normalize(value.abs().pow(power).sum(1).flatten(1))


def gram(first: Tensor, last: Tensor) -> Tensor:
    """[N, C, C']: products of channels of two maps, averaged over positions. Yim et al. 2017.

    Of two resolutions the larger is averaged to the smaller.
    """
    first, last = same_size(first, last)
    one, other = first.flatten(2), last.flatten(2)
    return one @ other.transpose(1, 2) / one.shape[2]


def similarity(value: Tensor) -> Tensor:
    """[N, N]: products of samples, rows of norm one. Tung and Mori 2019."""
    flat = value.flatten(1)
    return F.normalize(flat @ flat.T)


def neurons(value: Tensor) -> Tensor:
    """[N, C, P]: each channel's map, of norm one. Huang and Wang 2017."""
    return F.normalize(value.flatten(2), dim=2)


def distances(value: Tensor) -> Tensor:
    """[N, N]: distances of samples as shares of their mean over pairs of different samples. Park et al. 2019."""
    found = _distances(value.flatten(1))
    return found / found[found > 0].mean().clamp(min=EPSILON) if bool((found > 0).any()) else found


def angles(value: Tensor) -> Tensor:
    """[N, N, N]: cosines of the angles i j k at j, as [j, i, k]. Park et al. 2019."""
    flat = value.flatten(1)
    directions = F.normalize(flat[None] - flat[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


def edges(value: Tensor) -> Tensor:
    """[N, N]: squared distances of samples as shares of the largest. Liu et al. 2019."""
    found = _squared_distances(value.flatten(1))
    return found / found.max().clamp(min=EPSILON)


def transformation(first: Tensor, last: Tensor) -> Tensor:
    """[N]: how far each sample moves between two maps, squared, as a share of the furthest. Liu et al. 2019.

    Maps of two sizes are averaged to the smaller, over positions and over neighbouring channels.
    """
    first, last = same_size(first, last)
    one, other = first.flatten(2).transpose(1, 2), last.flatten(2).transpose(1, 2)
    channels = min(one.shape[2], other.shape[2])
    one, other = (F.adaptive_avg_pool1d(each, channels) for each in (one, other))
    moved = (one - other).pow(2).flatten(1).sum(1)
    return moved / moved.max().clamp(min=EPSILON)


def singular_vectors(first: Tensor, last: Tensor) -> tuple[Tensor, ...]:
    """Right singular vectors [N, C, R] of both maps [P, C] and shares [N, R] of singular values, for `radial`.

    A vector's sign is arbitrary: here its largest component is positive. The gradient of a decomposition is not defined where two
    singular values are equal; there it counts as none.
    """
    return (*_decomposed(first), *_decomposed(last))


def probabilities(attention: Tensor, values: Tensor) -> Tensor:
    """Of a place of the rule `attention`, the logarithms of its probabilities [N, heads, queries, keys]."""
    return attention


def value_relation(attention: Tensor, values: Tensor) -> Tensor:
    """[N, heads, keys, keys]: log softmax(V V^T / sqrt(size)). Wang et al. 2020."""
    return (values @ values.transpose(-2, -1) / math.sqrt(values.shape[-1])).log_softmax(-1)


def class_token(value: Tensor) -> Tensor:
    """[N, C]: the first token's state, of [N, C, tokens]."""
    return value[:, :, 0]


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [N, C, *size]; where sizes differ, the larger is averaged to the smaller (adaptive average pooling)."""
    if one.dim() < 3 or one.dim() != other.dim() or one.shape[2:] == other.shape[2:]:
        return one, other
    size = [min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True)]
    pool = POOLS[len(size) - 1](size)
    return pool(one), pool(other)


def _squared_distances(flat: Tensor) -> Tensor:
    squares = flat.pow(2).sum(1)
    found = (squares[:, None] + squares[None] - 2 * flat @ flat.T).clamp(min=0)
    return found * (1 - torch.eye(len(flat), device=flat.device))


def _distances(flat: Tensor) -> Tensor:
    squared = _squared_distances(flat)
    return torch.where(squared > EPSILON, squared.clamp(min=EPSILON).sqrt(), 0.0)


def _finite(gradient: Tensor) -> Tensor:
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0).clamp(-1, 1)


def _decomposed(value: Tensor) -> tuple[Tensor, Tensor]:
    flat = value.flatten(2).transpose(1, 2).double()
    if flat.requires_grad:
        flat.register_hook(_finite)  # type: ignore[no-untyped-call]
    squares, vectors = torch.linalg.eigh(
        flat.transpose(1, 2) @ flat
    )  # cheaper than svd: channels are few, positions many
    values, vectors = squares.flip(1).clamp(min=EPSILON).sqrt(), vectors.flip(2)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).to(value.dtype), values.to(value.dtype)

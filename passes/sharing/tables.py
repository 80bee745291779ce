"""The values that the weights of a layer share, as a table of 2^bits entries, one of which is zero.

    k-means    Lloyd's iterations from a start (`graphopt.formats.codebook`): least squared error for so many values
    uniform    whole multiples of a step: least squared error for so many bits of an entropy coder, where there are many values

Zeros, of pruned weights, are no part of what k-means sees: they have an entry anyway.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from graphopt.formats.codebook import Start, k_means

Values = Literal["k-means", "uniform"]
MOST_STEPS = 127  # to either side of zero


def shared(weight: Tensor, bits: int, start: Start, seed: int) -> Tensor:
    """A table by k-means, float32 ascending [2^bits]; the last entry is repeated where there are fewer values."""
    flat = weight[weight != 0].double().reshape(1, -1)
    if not flat.numel():
        return torch.zeros(1 << bits)
    found = torch.unique(k_means(flat, torch.ones_like(flat), 1 << bits, start, seed)[0])
    return torch.cat([found, found[-1:].expand((1 << bits) - len(found))])


def multiples(weight: Tensor, step: float) -> Tensor:
    """A table of whole multiples of a step that reaches the largest weight, float32 ascending [2^bits], as far as it goes."""
    reach = min(max(1, round(float(weight.abs().max()) / step)), MOST_STEPS)
    bits = max(2, (2 * reach + 1 - 1).bit_length())
    found = torch.arange(-reach, reach + 1) * step
    return torch.cat([found, found[-1:].expand((1 << bits) - len(found))]).float()


def step_of(weight: Tensor, bits: float) -> float:
    """The step at which h - log2(step) = bits, h the entropy of a normal distribution: about the entropy of the multiples, where
    that is over a bit; they keep some more at lower ones (a quarter of a bit at 0)."""
    deviation = float(weight[weight != 0].double().square().mean().sqrt()) if bool((weight != 0).any()) else 1.0
    return max(deviation * math.sqrt(2 * math.pi * math.e) / 2**bits, float(weight.abs().max()) / MOST_STEPS, 1e-30)

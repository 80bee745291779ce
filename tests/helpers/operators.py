"""Calls of operators, for tests of every backend: operator -> functions and inputs.

Sizes are odd and differ from each other, operands are broadcast, types are those that are legal. A
function returns one tensor, or several.
"""

from __future__ import annotations

from typing import Any

import torch
from operator_calls import (
    ACTIVATIONS,
    COMPARISONS,
    IMAGES,
    INDEXING,
    MOVES,
    ORDERS,
    QUOTIENTS,
    REDUCTIONS,
    STATISTICS,
    SUMS,
    UNARY,
    UNARY_POSITIVE,
)
from operator_layers import attention, convolutions, grids, norms, pools, products, recurrent, resizes
from operator_samples import FLOAT16_FORMATS, IMAGE, PAIR, WHOLE, Sample, each, flags, floats, integers, positive
from torch import Tensor, nn

OPERATORS: dict[str, list[Sample]] = {
    "sums": [*each(SUMS, PAIR), *each(SUMS[:-1], WHOLE)],
    "activations": each(ACTIVATIONS, (IMAGE,)),
    "functions": [
        *each(UNARY, (IMAGE + 0.01,)),
        *each(UNARY_POSITIVE, (positive(2, 3, 5),)),
        *each([torch.round], (FLOAT16_FORMATS,)),
    ],
    "functions of integers": each(
        [
            torch.abs,
            torch.neg,
            torch.sign,
            torch.floor,
            torch.round,
            torch.square,
            lambda x: x**3,
            torch.exp,
            torch.sigmoid,
            torch.logical_not,
            torch.bitwise_not,
            torch.relu,
            lambda x: x.clamp(-2, 3),
            lambda x: x.clamp(min=0.5),
            torch.isnan,
        ],
        (integers(3, 5),),
        (integers(3, 5, dtype=torch.int32),),
    ),
    "comparisons": [
        *each(COMPARISONS, PAIR),
        *each(COMPARISONS, WHOLE),
        *each(COMPARISONS[:2], (flags(3, 5), flags(3, 1))),
    ],
    "bits": each(
        [
            torch.bitwise_and,
            torch.bitwise_or,
            torch.bitwise_xor,
            lambda a, b: a & b[:1],
            lambda a, b: ~a,
            lambda a, b: a ^ b,
        ],
        (integers(3, 5), integers(3, 1)),
        (flags(3, 5), flags(3, 1)),
    ),
    "quotients": [
        *each(QUOTIENTS, PAIR),
        *each(QUOTIENTS, (integers(2, 3, 5), integers(3, 1, low=1, dtype=torch.int32) * -1)),
    ],
    "reductions": [
        *each(REDUCTIONS, (floats(2, 3, 5),)),
        *each(REDUCTIONS, (integers(2, 3, 5, low=-3, high=4, dtype=torch.int32),)),
        *each([lambda x: x.sum(1), lambda x: x.any(1), lambda x: x.all(), lambda x: x.cumsum(1)], (flags(2, 3, 5),)),
    ],
    "statistics": each(STATISTICS, (floats(2, 3, 5),)),
    "orders": [
        *each(ORDERS, (floats(2, 3, 5),)),
        *each(ORDERS, (torch.randperm(30, generator=torch.Generator().manual_seed(0)).reshape(2, 3, 5),)),
    ],
    "moves": [*each(MOVES, (IMAGE,)), *each(MOVES, (integers(2, 3, 7, 9),))],
    "moves of images": each(IMAGES, (IMAGE,)),
    "indexing": each(INDEXING, (floats(2, 3, 4, 9), torch.tensor([1, -1]))),
    "pools": each(pools(), (IMAGE,)),
    "resizes": each(resizes(), (IMAGE,)),
    "grids": each(grids(), (IMAGE,)),
    "products": products(),
    "convolutions": convolutions(),
    "norms": norms(),
    "attention": attention(),
    "recurrent layers": recurrent(),
}


class Calls(nn.Module):
    """Calls that share no input, in one model."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self.counts = [len(sample.inputs) for sample in samples]
        self.calls = [sample.call for sample in samples]
        self.inner = nn.ModuleList(call for call in self.calls if isinstance(call, nn.Module))

    def forward(self, *inputs: Tensor) -> list[Any]:
        found, at = [], 0
        for call, count in zip(self.calls, self.counts, strict=True):
            found.append(call(*inputs[at : at + count]))
            at += count
        return found


def inputs_of(samples: list[Sample]) -> tuple[Tensor, ...]:
    return tuple(tensor for sample in samples for tensor in sample.inputs)

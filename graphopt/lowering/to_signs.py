"""Values rounded to signs, as a function that runtimes have: comparisons with two numbers.

    to_signs(x) = high    where x >= threshold
                  low     where x <= -threshold, and not x >= threshold
                  0       between, and for what is no number

In front of it stand codes or floats, behind it the codes -below, 0 and above: `graphopt.lowering.qdq` puts it there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphopt.ir.ops import OpInfo, register


@torch.library.custom_op("graphopt::to_signs", mutates_args=())
def to_signs(x: Tensor, threshold: float, low: float, high: float) -> Tensor:
    """See the head of this file. Float tensor of any shape -> the same shape and type."""
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.where(x >= threshold, high * one, torch.where(x <= -threshold, low * one, 0 * one))


@to_signs.register_fake
def _(x: Tensor, threshold: float, low: float, high: float) -> Tensor:
    return torch.empty_like(x)


TO_SIGNS: Any = torch.ops.graphopt.to_signs.default
register(TO_SIGNS, OpInfo("to_signs", pointwise=True, within_channels=True, monotone=True))

"""A function of codes with one slope below zero and another above, for each channel: PReLU, leaky relu, another grid.

    q_y = sat(rne(f32(q_x - z_x) * m) + z_y)           m = negative[c] where q_x < z_x, else positive[c]; float32

Between quantizers the function is what dequantize, float operator and quantize give, 256 entries for each channel. `fit` finds
multipliers that give every entry, or none: with k = q_y - z_y and n = q_x - z_x each entry asks for k - 1/2 <= n m <= k + 1/2,
one end of which falls away where k is saturated. What is in the middle of all of them is tried on all codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.lowering.integers.arithmetic import all_codes, saturate
from graphopt.lowering.qdq import QuantizationParameters


@dataclass(frozen=True, eq=False)
class Slopes:
    """The function of codes of x with channels in dimension 1.

    Attributes:
        positive, negative: float32 [channels], or [1] for all.
        x, y: grids.
    """

    positive: Tensor
    negative: Tensor
    x: QuantizationParameters
    y: QuantizationParameters

    def rows(self, multiplier: Tensor, channels: int) -> Tensor:
        """[3, channels]: a multiplier that comes before, positive, negative."""
        return torch.stack([values.expand(channels) for values in (multiplier, self.positive, self.negative)])

    def __call__(self, codes: Tensor) -> Tensor:
        along = [-1, *[1] * (codes.dim() - 2)]
        steps = (codes.int() - self.x.zero_point).float()
        slope = torch.where(steps < 0, self.negative.reshape(along), self.positive.reshape(along))
        return saturate(torch.round(steps * slope), self.y)

    @classmethod
    def fit(cls, entries: Tensor, x: QuantizationParameters, y: QuantizationParameters) -> Slopes | None:
        """For entries [channels, 256], those of the lowest code first; None where no multipliers give them all."""
        codes = all_codes(x.dtype).clamp(x.quant_min, x.quant_max)  # others do not occur
        reachable = (codes - int(all_codes(x.dtype)[0])).long()
        wanted = entries[:, reachable]
        steps, results = codes - x.zero_point, wanted.int() - y.zero_point
        low, high = (end - y.zero_point for end in (y.quant_min, y.quant_max))
        positive, negative = (_middle(steps[part], results[:, part], low, high) for part in (steps > 0, steps < 0))
        found = cls(positive, negative, x, y)
        every = codes.to(x.dtype).expand(len(entries), -1)[None]
        return found if torch.equal(found(every), wanted[None].to(y.dtype)) else None


def _middle(steps: Tensor, results: Tensor, low: int, high: int) -> Tensor:
    """Of the multipliers that every pair of numbers allows, float32 [channels]."""
    if not len(steps):
        return torch.zeros(len(results))
    n, k = steps.double(), results.double()
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    least = torch.where(results > low, k - 0.5, -infinity) / n
    most = torch.where(results < high, k + 0.5, infinity) / n
    ends = torch.stack([torch.minimum(least, most).amax(1), torch.maximum(least, most).amin(1)])
    ends = torch.where(ends.isinf(), ends.flip(0) + torch.tensor([[-1.0], [1.0]]), ends)
    return ends.nan_to_num(0.0).mean(0).float()

"""Soft rounding: codes that are learned by gradients, between the two nearest to a weight.

    code = base + h(V)      h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)      base = floor of the weight in steps

h reaches 0 and 1 and has a gradient up to there. A regularizer that is switched on after a warm-up and sharpened on the way
drives each h to one of its ends, where nothing is left to round:

    sum  1 - |2 h - 1|^beta        beta: from 20 down to 2

Paper: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphopt.fitting.rounding import Lattice

STRETCH, SHARP, BLUNT = 0.1, 20.0, 2.0
START = 0.8  # how far towards the codes found before the search begins


def rectified(v: Tensor) -> Tensor:
    """h(V), in [0, 1]."""
    return (torch.sigmoid(v) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)


def inverse(h: Tensor) -> Tensor:
    """The V of an h, a little inside of the ends, where gradients vanish."""
    p = (h.clamp(0.01, 0.99) + STRETCH) / (1 + 2 * STRETCH)
    return torch.log(p / (1 - p))


@dataclass
class SoftWeight:
    """A weight [g, out, d] on its way to codes.

    Attributes:
        lattice: where it ends; its scale when learning began.
        base: the lower of its two codes.
        v: what is learned of the rounding.
        growth: the scale's logarithm beyond that of `lattice`, in its shape; None where the scale stays.
    """

    lattice: Lattice
    base: Tensor
    v: Tensor
    growth: Tensor | None

    @classmethod
    def around(cls, weight: Tensor, lattice: Lattice, codes: Tensor, *, scales: bool) -> SoftWeight:
        """Start from a weight, and from codes found for it before, which stay within reach.

        The position of the weight between two codes is kept where one of them is the code found; where it is not, the code has
        moved further to make up for others, and the search begins next to it.
        """
        scale, zero = (lattice.over(p, weight.shape[-1]) for p in (lattice.scale, lattice.zero))
        position = weight / scale + zero
        low = torch.floor(position).clamp(lattice.low, lattice.high - 1)
        base = torch.where(codes < low, codes, torch.where(codes > low + 1, codes - 1, low))
        inside = (position - base).clamp(0, 1)
        h = START * (codes - base) + (1 - START) * inside
        growth = torch.zeros_like(lattice.scale, dtype=torch.float32).requires_grad_() if scales else None
        return cls(lattice, base.float(), inverse(h.float()).requires_grad_(), growth)

    @property
    def scale(self) -> Tensor:
        scale = self.lattice.scale.float()
        return scale if self.growth is None else scale * self.growth.exp()

    def weight(self) -> Tensor:
        """[g, out, d], differentiable."""
        zero, scale = (self.lattice.over(p, self.base.shape[-1]) for p in (self.lattice.zero.float(), self.scale))
        return (self.base + rectified(self.v) - zero) * scale

    def penalty(self, beta: float) -> Tensor:
        return (1 - (2 * rectified(self.v) - 1).abs().pow(beta)).sum()

    def harden(self) -> tuple[Tensor, Lattice]:
        """The codes and their lattice."""
        with torch.no_grad():
            codes = (self.base + (rectified(self.v) >= 0.5)).double()
            return codes, replace(self.lattice, scale=self.scale.double())

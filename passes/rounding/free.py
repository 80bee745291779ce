"""Weights that are learned freely and rounded on the way: the relaxation of choosing whole numbers.

    W^ = (clamp(round(U), low, high) - z) s        U: weights in steps, learned straight through the rounding, with s and biases

Unlike soft rounding (`soft.py`), which chooses between two codes, a weight may travel as far as its gradient takes it, and no
regularizer is needed: what runs is rounded all the time.

Papers: Hubara et al. 2020, "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming"
        (AdaQuant), section 3; Bengio et al. 2013 (straight-through).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphopt.fitting.rounding import Lattice

START = 0.8  # how far towards the codes found before the search begins


@dataclass
class FreeWeight:
    """A weight [g, out, d] on its way to codes; attributes as those of `SoftWeight`, `v` is U."""

    lattice: Lattice
    v: Tensor
    growth: Tensor | None

    @classmethod
    def around(cls, weight: Tensor, lattice: Lattice, codes: Tensor, *, scales: bool) -> FreeWeight:
        """Start from a weight, inside of the cells of codes that were found for it before."""
        scale, zero = (lattice.over(p, weight.shape[-1]) for p in (lattice.scale, lattice.zero))
        position = weight / scale + zero
        inside = START * codes + (1 - START) * torch.maximum(torch.minimum(position, codes + 0.5), codes - 0.5)
        growth = torch.zeros_like(lattice.scale, dtype=torch.float32).requires_grad_() if scales else None
        return cls(lattice, inside.float().requires_grad_(), growth)

    @property
    def scale(self) -> Tensor:
        scale = self.lattice.scale.float()
        return scale if self.growth is None else scale * self.growth.exp()

    def weight(self) -> Tensor:
        """[g, out, d], rounded; its gradient by U is that without rounding, where U is within the codes."""
        within = self.v.clamp(self.lattice.low, self.lattice.high)
        rounded = within + (torch.round(within) - within).detach()
        zero, scale = (self.lattice.over(p, rounded.shape[-1]) for p in (self.lattice.zero.float(), self.scale))
        return (rounded - zero) * scale

    def penalty(self, beta: float) -> Tensor:
        """Nothing drives the weights anywhere but the error."""
        return torch.zeros(())

    def harden(self) -> tuple[Tensor, Lattice]:
        """The codes and their lattice."""
        with torch.no_grad():
            codes = torch.round(self.v).clamp(self.lattice.low, self.lattice.high).double()
            return codes, replace(self.lattice, scale=self.scale.double())

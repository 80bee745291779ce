"""Moments of what a layer reads and of what it should give, group by group, in constant memory.

    xx = E[x x^T] - E[x] E[x]^T    [g, d, d]        xt = E[x t^T] - E[x] E[t]^T    [g, d, out / g]

x are the rows that the layer multiplies its weight with (`graphopt.analysis.im2col`): d counts the input channels of a group
times the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphopt.analysis.im2col import rows
from graphopt.ir.layer import Layer

ROWS = 16384  # of one batch, at most
CHUNK = 8  # samples whose rows are written out at a time


class GroupedMoments:
    """Sums in float64.

    Attributes:
        centred: whether means are taken off; a layer without a bias cannot make up for them.
        count: rows seen.
        mean_x, mean_t: [g, d], [g, out / g].
    """

    def __init__(self, layer: Layer, *, centred: bool) -> None:
        self.layer, self.centred = layer, centred
        self.count = 0
        self._sums: list[Tensor] = []

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Add a batch: the layer's input, and the wanted output, if there is one, as [samples, positions, out]."""
        size = CHUNK if self.layer.dims else len(x)
        parts = torch.split(x, size)
        wanted = [None] * len(parts) if target is None else torch.split(target, size)
        for part, t in zip(parts, wanted, strict=True):
            found = rows(self.layer, part)
            step = -(-len(x) * found.shape[1] // ROWS) | 1 if self.layer.dims else 1  # odd: not in step with images
            u = self._grouped(found[:, ::step])
            sums = [u.sum(1), u.transpose(1, 2) @ u]
            if t is not None:
                v = self._grouped(t[:, ::step])
                sums += [v.sum(1), u.transpose(1, 2) @ v]
            self.count += u.shape[1]
            self._sums = [s.double() + (self._sums[i] if self._sums else 0) for i, s in enumerate(sums)]

    def _grouped(self, found: Tensor) -> Tensor:
        return found.reshape(-1, self.layer.groups, found.shape[-1] // self.layer.groups).transpose(0, 1)

    @property
    def mean_x(self) -> Tensor:
        return self._sums[0] / self.count

    @property
    def mean_t(self) -> Tensor:
        return self._sums[2] / self.count

    @property
    def xx(self) -> Tensor:
        return self._sums[1] / self.count - self.centred * self.mean_x[:, :, None] * self.mean_x[:, None]

    @property
    def xt(self) -> Tensor:
        return self._sums[3] / self.count - self.centred * self.mean_x[:, :, None] * self.mean_t[:, None]

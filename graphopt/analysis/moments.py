"""Moments of what a layer reads and of what is wanted of it, group by group, in constant memory.

    xx = E[x x^T] - E[x] E[x]^T    [g, d, d]        xt = E[x t^T] - E[x] E[t]^T    [g, d, out / g]

x are the rows that the layer multiplies its weight with (`graphopt.analysis.im2col`): d counts the input channels of a group
times the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.im2col import rows, with_samples
from graphopt.execution.observers import Statistic, observe
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer

BUDGET = 2**30  # bytes of moments kept at a time; more layers take more walks
ROWS = 16384  # of one batch, at most
CHUNK = 8  # samples whose rows are written out at a time


class Moments:
    """Sums in float64, of differences from the mean of the first rows: small variation around a large mean would be lost.

    Attributes:
        centred: whether means are taken off; a layer without a bias cannot make up for them.
        count: rows seen.
        mean_x, mean_t: [g, d], [g, out / g].
        xx, xt: second moments per row; see the head of this file.
    """

    def __init__(self, layer: Layer, *, centred: bool = True) -> None:
        self.layer, self.centred = layer, centred
        self.count = 0
        self._sums: list[Tensor] = []
        self._origin: list[Tensor] = []  # of x and t: [g, 1, d], [g, 1, out / g]

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Add a batch: the layer's input, and the wanted output, if there is one, as [samples, positions, out]."""
        x = with_samples(self.layer, x)
        size = CHUNK if self.layer.dims else len(x)
        parts = torch.split(x, size)
        wanted = [None] * len(parts) if target is None else torch.split(target, size)
        for part, t in zip(parts, wanted, strict=True):
            found = rows(self.layer, part)
            step = -(-len(x) * found.shape[1] // ROWS) | 1 if self.layer.dims else 1  # odd: not in step with images
            both = [self._grouped(found[:, ::step]), *([] if t is None else [self._grouped(t[:, ::step])])]
            self._origin = self._origin or [values.mean(1, keepdim=True) for values in both]
            u, *rest = (values - origin for values, origin in zip(both, self._origin, strict=True))
            sums = [u.sum(1), u.transpose(1, 2) @ u]
            for v in rest:
                sums += [v.sum(1), u.transpose(1, 2) @ v]
            self.count += u.shape[1]
            self._sums = [s.double() + (self._sums[i] if self._sums else 0) for i, s in enumerate(sums)]

    def _grouped(self, found: Tensor) -> Tensor:
        return found.reshape(-1, self.layer.groups, found.shape[-1] // self.layer.groups).transpose(0, 1)

    @property
    def mean_x(self) -> Tensor:
        return self._mean(0)

    @property
    def mean_t(self) -> Tensor:
        return self._mean(1)

    @property
    def xx(self) -> Tensor:
        return self._second(0)

    @property
    def xt(self) -> Tensor:
        return self._second(1)

    def _mean(self, number: int) -> Tensor:
        """Of x (0) or t (1)."""
        return self._origin[number][:, 0].double() + self._sums[2 * number] / self.count

    def _second(self, number: int) -> Tensor:
        """Of x with x (0) or t (1)."""
        offsets = [self._sums[2 * n] / self.count for n in (0, number)]
        centred = self._sums[2 * number + 1] / self.count - offsets[0][:, :, None] * offsets[1][:, None]
        return centred if self.centred else centred + self._mean(0)[:, :, None] * self._mean(number)[:, None]


def input_moments(
    graph: Graph, layers: Sequence[Layer], data: Iterable[list[Tensor]]
) -> Iterator[tuple[Layer, Moments]]:
    """The moments of each layer's inputs: in one walk through the data for all that fit into memory (`BUDGET`)."""
    todo = list(layers)
    while todo:
        batch = [todo.pop(0)]
        while todo and sum(map(moment_bytes, [*batch, todo[0]])) <= BUDGET:
            batch.append(todo.pop(0))
        found = [Moments(layer) for layer in batch]
        watched: dict[Node, list[Statistic]] = {}
        for moments in found:
            watched.setdefault(moments.layer.input, []).append(moments)
        observe(graph, watched, data)
        yield from zip(batch, found, strict=True)


def moment_bytes(layer: Layer) -> int:
    """What the second moments of a layer's inputs take."""
    columns = value(layer.weight).numel() // layer.out_channels
    return int(8 * layer.groups * columns * columns)

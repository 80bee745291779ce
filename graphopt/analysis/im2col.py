"""What a layer multiplies its weight with, as rows of a matrix, and the moments of those rows in constant memory.

    y[n, o, p] = sum_d W[o, d] x[(n, p), d] + b[o]        d runs over input channels and kernel positions

For a convolution the rows are the patches under the kernel; for a transposed convolution they are the patches of the input with
zeros put between its elements; for a linear layer the rows are its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.node import Node

from graphopt.execution.observers import Statistic, observe
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import value

BUDGET = 2**30  # bytes of moments kept at a time; more layers take more walks
ROWS = 16384  # of one batch that enter the moments at most


def weight_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """[out, in / groups * kernel] in the order of `rows`."""
    return layer.canonical(weight).flatten(1)


def from_matrix(layer: Layer, matrix: Tensor, like: Tensor) -> Tensor:
    """The weight in the operator's own layout; inverse of `weight_matrix`."""
    return layer.native(matrix.reshape(layer.canonical(like).shape)).contiguous()


def rows(layer: Layer, x: Tensor) -> Tensor:
    """The patches of an input: [samples, positions, in * kernel] (a linear layer: [samples, positions, in])."""
    if layer.kind == "linear":
        return x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])
    kernel = tuple(value(layer.weight).shape[2:])
    padding, stride, dilation = layer.padding, layer.stride, layer.dilation
    if layer.kind == "conv_transpose":
        x = _spread(x, stride)
        extra = layer.output_padding
        edges = [
            (d * (k - 1) - p, d * (k - 1) - p + e) for d, k, p, e in zip(dilation, kernel, padding, extra, strict=True)
        ]
        stride = (1,) * layer.dims
    else:
        edges = [(p, p) for p in padding]
    x = F.pad(x, [amount for edge in reversed(edges) for amount in edge])
    for dim, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, d * (k - 1) + 1, s)[..., ::d]  # [N, C, positions..., kernel...]
    if layer.kind == "conv_transpose":
        x = x.flip(tuple(range(x.dim() - layer.dims, x.dim())))
    order = [0, *range(2, 2 + layer.dims), 1, *range(2 + layer.dims, x.dim())]
    return x.permute(order).flatten(1, layer.dims).flatten(2)


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Zeros between the elements: what a strided transposed convolution does to its input."""
    if all(s == 1 for s in stride):
        return x
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    out = x.new_zeros([*x.shape[:2], *sizes])
    out[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return out


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
    columns = value(layer.weight).numel() // layer.out_channels * layer.groups
    return int(8 * columns * columns)


class Moments:
    """First and second moments of the rows x of a layer, and with targets t their products: all float64 sums in constant memory.

    Attributes:
        count: rows seen.
        mean_x, mean_t: [d], [out].
        xx, xt: centred second moments per row, [d, d] and [d, out].
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.count = 0
        self._x: Tensor | None = None

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Add a batch: the layer's input, and its wanted output as [samples, positions, out]."""
        flat = rows(self.layer, x.detach())
        step = -(-flat.shape[0] * flat.shape[1] // ROWS)
        step |= 1  # odd: not in step with the even sizes of images
        flat = flat.flatten(0, 1)[::step]
        t = None if target is None else target.detach().flatten(0, 1)[::step]
        if self._x is None:
            d = flat.shape[1]
            self._x, self._xx = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
            if t is not None:
                self._t = torch.zeros(t.shape[1], dtype=torch.float64)
                self._xt = torch.zeros(d, t.shape[1], dtype=torch.float64)
        self.count += len(flat)
        self._x += flat.sum(0)
        self._xx += flat.T @ flat
        if t is not None:
            self._t += t.sum(0)
            self._xt += flat.T @ t

    @property
    def mean_x(self) -> Tensor:
        assert self._x is not None
        return self._x / self.count

    @property
    def mean_t(self) -> Tensor:
        return self._t / self.count

    @property
    def xx(self) -> Tensor:
        return self._xx / self.count - torch.outer(self.mean_x, self.mean_x)

    @property
    def xt(self) -> Tensor:
        return self._xt / self.count - torch.outer(self.mean_x, self.mean_t)

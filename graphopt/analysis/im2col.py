"""What a layer multiplies its weight with, as rows of a matrix.

    y[n, o, p] = sum_d W[o, d] x[(n, p), d] + b[o]        d runs over input channels and kernel positions

For a convolution the rows are the patches under the kernel; for a transposed convolution they are the patches of the input with
zeros put between its elements; for a linear layer the rows are its inputs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.calls import value
from graphopt.ir.layer import Layer


def weight_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """[out, in / groups * kernel] in the order of `rows`."""
    return layer.canonical(weight).flatten(1)


def from_matrix(layer: Layer, matrix: Tensor, like: Tensor) -> Tensor:
    """The weight in the operator's own layout; inverse of `weight_matrix`."""
    return layer.native(matrix.reshape(layer.canonical(like).shape)).contiguous()


def with_samples(layer: Layer, x: Tensor) -> Tensor:
    """What a convolution reads or gives, [N, C, ...]; one that was captured without samples has one."""
    return x[None] if layer.dims and x.dim() == layer.dims + 1 else x


def rows(layer: Layer, x: Tensor) -> Tensor:
    """The patches of an input: [samples, positions, in * kernel] (a linear layer: [samples, positions, in])."""
    if layer.kind == "linear":
        return x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])
    x, kernel = with_samples(layer, x), tuple(value(layer.weight).shape[2:])
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

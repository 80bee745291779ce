"""A chain of small layers that stands for one big one, before it is put into a graph.

    chain = Chain((Stage(w0, ...), Stage(w1, ...)))         every weight has the layout [out, in / groups, *kernel]
    chain(x)                                                what the small layers compute, bias left out
    chain.dense()                                           the weight of the one layer that computes the same

Stages are linear maps, so their composition is one, and its weight is what the kernels composed give:

    W[o, c, t] = sum over m and s of  A[o, m, s] B[m, c, t - s]              A behind B

Stages that stand for a linear layer may read its features as a tensor of several dimensions (`View`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.ir.calls import shape, value
from graphopt.ir.cost import length
from graphopt.ir.layer import Layer, convolution
from graphopt.ir.ops import aten

COMPOSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class View:
    """How a stage reads features as a tensor: [..., features] -> [n, *sizes], permuted by `order` -> [m, *shape].

    `shape` is what the operator takes of one sample: (features,) of a linear stage, (channels, positions) of a convolution.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int], order: Sequence[int], shape: Sequence[int]) -> View:
        """Without the dimensions of size 1."""
        kept = [d for d, size in enumerate(sizes) if size > 1]
        order = [kept.index(d) for d in order if d in kept]
        return cls(tuple(sizes[d] for d in kept), tuple(order), tuple(shape))

    def calls(self) -> list[tuple[Any, list[int]]]:
        """The ATen operators, each with its argument behind the input."""
        together = (aten.reshape.default, [-1, *self.shape])
        if self.order == tuple(range(len(self.order))):
            return [together]
        apart = (aten.reshape.default, [-1, *self.sizes])
        return [apart, (aten.permute.default, [0, *(d + 1 for d in self.order)]), together]

    def __call__(self, x: Tensor) -> Tensor:
        for target, argument in self.calls():
            x = target(x, argument)
        return x


@dataclass(frozen=True)
class Geometry:
    """How a stage moves over its input; numbers are one per spatial dimension, none for a linear layer."""

    kind: str = "linear"  # as in `Layer.kind`
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    view: View | None = None

    @classmethod
    def pointwise(cls, layer: Layer, groups: int = 1) -> Geometry:
        """A linear layer, or a convolution with a kernel of 1."""
        if layer.kind == "linear":
            return cls()
        one, none = (1,) * layer.dims, (0,) * layer.dims
        return cls("conv", groups, one, none, one, none)

    @classmethod
    def along(cls, layer: Layer, axes: Sequence[int], groups: int = 1) -> Geometry:
        """What `layer` does along some of its spatial dimensions, and a kernel of 1 along the others."""
        if layer.kind == "linear":
            return cls()
        plain = ((layer.stride, 1), (layer.padding, 0), (layer.dilation, 1), (layer.output_padding, 0))
        stride, padding, dilation, output_padding = (
            tuple(v if a in axes else default for a, v in enumerate(values)) for values, default in plain
        )
        return cls(layer.kind, groups, stride, padding, dilation, output_padding)


@dataclass(frozen=True)
class Stage:
    """One small layer without bias. `weight`: [out, in / groups, *kernel]."""

    weight: Tensor
    geometry: Geometry

    @property
    def channels(self) -> tuple[int, int]:
        """Into it and out of it."""
        return self.weight.shape[1] * self.geometry.groups, self.weight.shape[0]

    @property
    def width(self) -> tuple[int, int]:
        """Features into it and out of it: the channels, or where it has a view those of all its positions."""
        inside, out = self.channels
        view = self.geometry.view
        positions = math.prod(view.sizes) // inside if view else 1
        return inside * positions, out * positions

    @property
    def native(self) -> Tensor:
        """The weight in the operator's own layout."""
        if self.geometry.kind != "conv_transpose":
            return self.weight
        grouped = self.weight.reshape(self.geometry.groups, -1, *self.weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1).contiguous()

    def call(self, bias: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """The ATen operator, and its arguments behind input and weight."""
        g = self.geometry
        dims = len(g.stride)
        if g.kind == "linear":
            return aten.linear.default, (bias,)
        if g.kind == "conv":
            return convolution(dims), (bias, list(g.stride), list(g.padding), list(g.dilation), g.groups)
        return convolution(dims, transposed=True), (
            bias, list(g.stride), list(g.padding), list(g.output_padding), g.groups, list(g.dilation),
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        target, rest = self.call()
        if self.geometry.view is not None:
            x = self.geometry.view(x)
        return target(x, self.native, *rest)  # type: ignore[no-any-return]

    def spread(self) -> Tensor:
        """The weight without groups, zeros between them: [out, in, *kernel]."""
        groups = self.geometry.groups
        if groups == 1:
            return self.weight
        out, inside = self.weight.shape[0] // groups, self.weight.shape[1]
        full = self.weight.new_zeros(groups, out, groups, inside, *self.weight.shape[2:])
        index = torch.arange(groups)
        full[index, :, index] = self.weight.reshape(groups, out, *self.weight.shape[1:])
        return full.reshape(groups * out, groups * inside, *self.weight.shape[2:])


@dataclass(frozen=True)
class Chain:
    """Stages in execution order; `groups` of the layer they stand for."""

    stages: tuple[Stage, ...]
    groups: int = 1

    @classmethod
    def whole(cls, layer: Layer) -> Chain:
        """The layer itself as one stage, without numbers."""
        weight = layer.canonical(torch.empty(value(layer.weight).shape, device="meta"))
        return cls((Stage(weight, Geometry.along(layer, range(layer.dims), layer.groups)),), layer.groups)

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x, [stage.native for stage in self.stages])

    def run(self, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
        """What the stages compute with these weights in their native layouts."""
        leading, last = x.shape[:-1], self.stages[-1]
        for stage, weight in zip(self.stages, weights, strict=True):
            target, rest = stage.call(bias if stage is last and not self.has_views else None)
            x = target(x if stage.geometry.view is None else stage.geometry.view(x), weight, *rest)
        if not self.has_views:
            return x
        x = x.reshape(*leading, self.width[1])
        return x if bias is None else x + bias

    @property
    def has_views(self) -> bool:
        return any(stage.geometry.view for stage in self.stages)

    @property
    def width(self) -> tuple[int, int]:
        """Features, or channels, into it and out of it."""
        return self.stages[0].width[0], self.stages[-1].width[1]

    @property
    def weights(self) -> list[Tensor]:
        return [stage.weight for stage in self.stages]

    def with_weights(self, weights: Sequence[Tensor]) -> Chain:
        """The same chain with other numbers."""
        return replace(self, stages=tuple(replace(s, weight=w) for s, w in zip(self.stages, weights, strict=True)))

    def dense(self) -> Tensor:
        """The weight of one layer that computes the same: [out, in / groups, *kernel]; differentiable."""
        if self.has_views:
            first = self.stages[0].weight
            return self(torch.eye(self.width[0], dtype=first.dtype, device=first.device)).T
        composed = self.stages[0].spread()
        for stage in self.stages[1:]:
            composed = compose(stage, composed)
        if self.groups == 1:
            return composed
        out, inside = composed.shape[0] // self.groups, composed.shape[1] // self.groups
        blocks = composed.reshape(self.groups, out, self.groups, inside, *composed.shape[2:])
        index = torch.arange(self.groups)
        return blocks[index, :, index].reshape(self.groups * out, inside, *composed.shape[2:])

    def macs(self, layer: Layer) -> int:
        """Multiply-accumulates for one sample of the input that `layer` has in its graph."""
        x, total = torch.empty([length(layer.input, d) for d in range(len(shape(layer.input)))], device="meta"), 0
        for stage in self.stages:
            y = replace(stage, weight=stage.weight.to("meta"))(x)
            if stage.geometry.kind == "conv_transpose":
                total += x.numel() // stage.channels[0] * stage.weight.numel()
            else:
                total += y.numel() * stage.weight[0].numel()
            x = y
        return total

    def __str__(self) -> str:
        """Its widths: `64 -> 24 -> 24 -> 128`."""
        return " -> ".join(map(str, [self.width[0], *(s.width[1] for s in self.stages)]))


def compose(after: Stage, before: Tensor) -> Tensor:
    """The weight [out, in, *kernel] of a stage behind a layer with the weight `before`: [middle, in, *kernel]."""
    dims = before.dim() - 2
    if dims == 0:
        return after.weight @ before
    kernel = after.weight.shape[2:]
    flipped = after.weight.flip(tuple(range(2, 2 + dims)))
    found = COMPOSE[dims](
        before.transpose(0, 1), flipped, padding=[k - 1 for k in kernel], groups=after.geometry.groups
    )
    return found.transpose(0, 1)

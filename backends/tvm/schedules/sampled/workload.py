"""One layer as plain loops that a schedule can be sampled for: the same arithmetic as the kernels written by hand.

    staged[n, h, w, c]         the data, padded, in the type that the machine multiplies; only where something has to change
    sums[n, y, x, o, lane]     over ky, kx, k, depth, of staged[n, y + ky, x + kx, (k, depth)] weight[o, ky, kx, k, lane, depth]
    result[n, y, x, (o, lane)] bias, scale and everything behind the layer

Channels of the result come in vectors; a depthwise layer sums over ky and kx alone. Weights lie as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import constants, depthwise, direct, dots, rounding
from graphopt.backends.tvm.schedules.dots import Dot
from graphopt.backends.tvm.schedules.emit import Array, Expr
from graphopt.backends.tvm.schedules.lookup import index_of
from graphopt.backends.tvm.schedules.specs import Conv
from graphopt.backends.tvm.schedules.staging import Staging

STAGED, SUMS, RESULT = "staged", "sums", "result"  # names of the blocks
NARROWEST = 4  # lanes


def applies(spec: Conv, machine: Machine) -> bool:
    """Channels fill whole vectors, and whole steps of the sum."""
    dot = _dot(spec, machine)
    return spec.channels % dot.lanes == 0 and (
        depthwise.applies(spec) or (spec.groups == 1 and spec.shape[3] % dot.depth == 0)
    )


def _dot(spec: Conv, machine: Machine) -> Dot:
    """As the kernels written by hand, but with narrower vectors where channels fill only these."""
    dot = dots.choose(spec.data, machine)
    if depthwise.applies(spec) and spec.integer:
        dot = Dot("none", 1, "int16", "int16", "int32", dot.lanes)
    while spec.channels % dot.lanes and dot.lanes > NARROWEST:
        dot = replace(dot, lanes=dot.lanes // 2)
    return dot


@dataclass(frozen=True)
class Workload:
    """A layer where `applies`. `outer` is its spec as given."""

    outer: Conv
    machine: Machine

    @cached_property
    def spec(self) -> Conv:
        """As computed: a 1x1 convolution with its pixels in one row."""
        return direct.as_rows(self.outer)

    @cached_property
    def depthwise(self) -> bool:
        return depthwise.applies(self.spec)

    @cached_property
    def dot(self) -> Dot:
        return _dot(self.spec, self.machine)

    @cached_property
    def staging(self) -> Staging:
        as_it_is = self.spec.data if not self.spec.integer else self.dot.data
        return Staging.of(self.spec, as_it_is, self.spec.zero_point)

    @property
    def vectors(self) -> int:
        """Of channels of the result."""
        return self.spec.channels // self.dot.lanes

    @property
    def weight_shape(self) -> tuple[int, ...]:
        if self.depthwise:
            return (self.vectors, *self.spec.kernel, self.dot.lanes)
        steps = self.spec.shape[3] // self.dot.depth
        return (self.vectors, *self.spec.kernel, steps, self.dot.lanes, self.dot.depth)

    def pack(self, weight: Array, bias: Array | None, multiplier: Array | None) -> tuple[Array, ...]:
        """As `Kernel.pack`."""
        spec, lanes = self.spec, self.dot.lanes
        constants.check(spec, weight, bias, multiplier)
        split = weight.reshape(self.vectors, lanes, -1, self.dot.depth, *spec.kernel).transpose(0, 4, 5, 2, 1, 3)
        packed = np.ascontiguousarray(split.reshape(self.weight_shape), dtype=self.dot.weight)
        return packed, *constants.vectors(spec, weight, bias, multiplier, self.staging.shift)

    def function(self) -> Any:
        """(data[, residual], *constants, result), not scheduled; shapes are those of `spec`."""
        described = constants.arguments(self.spec, self.weight_shape, self.dot.weight, self.spec.channels)
        described.pop("y")
        given = {name: te.placeholder(shape, dtype, name) for name, (shape, dtype) in described.items()}
        result = te.compute(self.spec.result_shape, self._finish(given, self._sums(given)), RESULT)
        return te.create_prim_func([*given.values(), result])

    def _staged(self, x: Any) -> Any:
        if not self.staging.needed:
            return x
        n, h, w, c = self.spec.shape
        (top, _), (left, _) = self.spec.padding
        rows, columns = self.staging.rows, self.staging.columns  # as far as it is read
        fill = tirx.const(self.staging.fill - self.staging.shift, self.staging.dtype)

        padded = top or left or rows > h + top or columns > w + left

        def element(image: Expr, y: Expr, x_: Expr, channel: Expr) -> Expr:
            inside = [y >= top, y < h + top, x_ >= left, x_ < w + left] if padded else []
            value = self.staging.converted(x[image, y - top, x_ - left, channel], 1)
            return tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value

        return te.compute((n, rows, columns, c), element, STAGED)

    def _sums(self, given: Mapping[str, Any]) -> Any:
        spec, dot, staged, weight = self.spec, self.dot, self._staged(given["x"]), given["weight"]
        ky, kx = (te.reduce_axis((0, k), name) for k, name in zip(spec.kernel, ("ky", "kx"), strict=True))
        (sy, sx), (dy, dx) = spec.stride, spec.dilation
        over = [ky, kx]
        if not self.depthwise:
            k, depth = te.reduce_axis((0, self.weight_shape[3]), "k"), te.reduce_axis((0, dot.depth), "depth")
            over += [k, depth]

        def element(image: Expr, y: Expr, x: Expr, o: Expr, lane: Expr) -> Expr:
            channel = o * dot.lanes + lane if self.depthwise else k * dot.depth + depth
            along = [o, ky, kx, lane] if self.depthwise else [o, ky, kx, k, lane, depth]
            value = staged[image, y * sy + ky * dy, x * sx + kx * dx, channel]
            return te.sum(value.astype(dot.sum) * weight[tuple(along)].astype(dot.sum), over)

        n, rows, columns, _ = spec.result_shape
        return te.compute((n, rows, columns, self.vectors, dot.lanes), element, SUMS)

    def _finish(self, given: Mapping[str, Any], sums: Any) -> Any:
        spec, lanes = self.spec, self.dot.lanes
        table = given.get("table")
        look_up = None if table is None else lambda codes, lanes: table[0, index_of(codes, lanes)]

        def element(image: Expr, y: Expr, x: Expr, channel: Expr) -> Expr:
            value = sums[image, y, x, channel // lanes, channel % lanes]
            if "bias" in given:
                value = value + given["bias"][channel]
            if spec.integer:
                value = value.astype("float32") * given["multiplier"][channel]
            residuals = [given["residual"][image, y, x, channel]] if "residual" in given else None
            slopes = [(given["positive"][channel], given["negative"][channel])] if spec.epilogue.slopes else None
            (result,) = rounding.finish(
                [value], residuals, spec.epilogue, spec.result_dtype, 1, self.machine, look_up, slopes
            )
            return result

        return element

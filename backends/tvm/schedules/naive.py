"""Kernels as plain loops, to be replaced by scheduled ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import specs
from graphopt.backends.tvm.schedules.specs import Codes, Conv, Elementwise, Epilogue, Pool, Sum

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A function for `call_tir`.

    Attributes:
        function: takes (data[, residual], *constants, result).
        shape, dtype: of the result.
        pack: (weight [O, C / groups, kh, kw], bias [O] or None, multiplier [O], [1] or None) -> constants.
    """

    function: Any
    shape: tuple[int, ...]
    dtype: str
    pack: Callable[..., tuple[Array, ...]] | None = None

    def constants(self, weight: Array, bias: Array | None = None, multiplier: Array | None = None) -> tuple[Array, ...]:
        assert self.pack is not None
        return self.pack(weight, bias, multiplier)


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def _clamp(value: Any, low: Any, high: Any) -> Any:
    value = value if low is None else tirx.max(value, _f32(low))
    return value if high is None else tirx.min(value, _f32(high))


def _saturate(value: Any, codes: Codes) -> Any:
    """Whole numbers in float, zero point not yet added -> codes in float."""
    low, high = codes.ends
    return _clamp(value, low - codes.zero_point, high - codes.zero_point) + _f32(codes.zero_point)


def _fma(a: Any, b: Any, c: Any) -> Any:
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def _sum(a: Any, b: Any, how: Sum) -> Any:
    inner = _fma(b.astype("float32"), _f32(how.ratio_b), _f32(how.offset))
    return _clamp(tirx.nearbyint(_fma(a, _f32(how.ratio_a), inner)), *how.result.ends)


def _finish(value: Any, residual: Any, epilogue: Epilogue) -> Any:
    """Float32 value -> float32 result."""
    if epilogue.result is not None:
        value = _saturate(tirx.nearbyint(value), epilogue.result)
        return value if epilogue.sum is None else _sum(value, residual, epilogue.sum)
    value = value if residual is None else value + residual.astype("float32")
    return _clamp(value, *epilogue.clamp)


def conv(spec: Conv, machine: Machine) -> Kernel:
    (n, h, w, c), (kh, kw) = spec.shape, spec.kernel
    (top, _), (left, _) = spec.padding
    og, cg = spec.channels // spec.groups, c // spec.groups
    kind, wide = ("int8", "int32") if spec.integer else (spec.data, "float32")
    x = te.placeholder(spec.shape, spec.data, "x")
    weight = te.placeholder((spec.channels, cg, kh, kw), kind, "weight")
    bias = te.placeholder((spec.channels,), wide, "bias")
    multiplier = te.placeholder((spec.channels,), "float32", "multiplier")
    residual = te.placeholder(spec.result_shape, spec.epilogue.residual or "float32", "residual")
    ry, rx, rc = (te.reduce_axis((0, e), name) for e, name in ((kh, "ry"), (kw, "rx"), (cg, "rc")))

    def product(b: Any, i: Any, j: Any, o: Any) -> Any:
        row = i * spec.stride[0] + ry * spec.dilation[0] - top
        column = j * spec.stride[1] + rx * spec.dilation[1] - left
        inside = tirx.all(row >= 0, row < h, column >= 0, column < w)
        value = x[b, row, column, o // og * cg + rc].astype(wide) - tirx.const(spec.zero_point, wide)
        return te.sum(
            tirx.if_then_else(inside, value, tirx.const(0, wide)) * weight[o, rc, ry, rx].astype(wide),
            axis=[ry, rx, rc],
        )

    acc = te.compute(spec.result_shape, product, "acc")

    def finish(b: Any, i: Any, j: Any, o: Any) -> Any:
        value = acc[b, i, j, o] + bias[o] if spec.integer or spec.epilogue.bias else acc[b, i, j, o]
        value = value.astype("float32") * multiplier[o] if spec.integer else value
        other = residual[b, i, j, o] if spec.epilogue.residual else None
        return _finish(value, other, spec.epilogue).astype(spec.result_dtype)

    y = te.compute(spec.result_shape, finish, "y")
    constants = [weight, bias, multiplier] if spec.integer else [weight, bias] if spec.epilogue.bias else [weight]
    inputs = [x, residual] if spec.epilogue.residual else [x]

    def pack(codes: Array, b: Array | None, m: Array | None) -> tuple[Array, ...]:
        packed = [np.ascontiguousarray(codes, kind)]
        if spec.integer or spec.epilogue.bias:
            packed.append(np.zeros(spec.channels, wide) if b is None else b.astype(wide))
        if spec.integer:
            assert m is not None
            packed.append(np.ascontiguousarray(np.broadcast_to(m.astype(np.float32), (spec.channels,))))
        return tuple(packed)

    return Kernel(te.create_prim_func([*inputs, *constants, y]), spec.result_shape, spec.result_dtype, pack)


def pool(spec: Pool, machine: Machine) -> Kernel:
    (n, h, w, c), (kh, kw) = spec.shape, spec.kernel
    (top, _), (left, _) = spec.padding
    x = te.placeholder(spec.shape, spec.data, "x")
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

    def at(i: Any, j: Any) -> tuple[Any, Any, Any]:
        row = i * spec.stride[0] + ry * spec.dilation[0] - top
        column = j * spec.stride[1] + rx * spec.dilation[1] - left
        return row, column, tirx.all(row >= 0, row < h, column >= 0, column < w)

    def greatest(b: Any, i: Any, j: Any, o: Any) -> Any:
        row, column, inside = at(i, j)
        value = tirx.if_then_else(inside, x[b, row, column, o], tirx.min_value(spec.data))
        return te.max(value, axis=[ry, rx])

    if spec.kind == "max":
        y = te.compute(spec.result_shape, greatest, "y")
        return Kernel(te.create_prim_func([x, y]), spec.result_shape, spec.result_dtype)

    whole = spec.whole and spec.data in specs.INTEGER
    wide = "int32" if whole else "float32"

    def total(b: Any, i: Any, j: Any, o: Any) -> Any:
        row, column, inside = at(i, j)
        value = x[b, row, column, o]
        if spec.data in specs.INTEGER:
            value = value.astype("int32") - spec.zero_point
        value = value.astype(wide)
        value = value if whole or spec.result is None else value * _f32(spec.scale)
        return te.sum(tirx.if_then_else(inside, value, tirx.const(0, wide)), axis=[ry, rx])

    def count(b: Any, i: Any, j: Any, o: Any) -> Any:
        return te.sum(tirx.if_then_else(at(i, j)[2], _f32(1), _f32(0)), axis=[ry, rx])

    acc = te.compute(spec.result_shape, total, "acc")
    number = te.compute(spec.result_shape, count, "count")

    def finish(b: Any, i: Any, j: Any, o: Any) -> Any:
        if whole and spec.result is not None:
            multiplier = np.float32(spec.scale) / (np.float32(spec.result_scale) * np.float32(h * w))
            value = tirx.nearbyint(acc[b, i, j, o].astype("float32") * _f32(float(multiplier)))
            return _saturate(value, spec.result).astype(spec.result_dtype)
        mean = acc[b, i, j, o] / (_f32(kh * kw) if spec.count_padding else number[b, i, j, o])
        if spec.result is None:
            return mean.astype(spec.result_dtype)
        value = tirx.nearbyint(mean / _f32(spec.result_scale) + _f32(spec.result.zero_point))
        return _clamp(value, *spec.result.ends).astype(spec.result_dtype)

    y = te.compute(spec.result_shape, finish, "y")
    return Kernel(te.create_prim_func([x, y]), spec.result_shape, spec.result_dtype)


def elementwise(spec: Elementwise, machine: Machine) -> Kernel:
    shape = spec.shape
    if isinstance(spec, specs.Quantize):
        x = te.placeholder(shape, spec.data, "x")

        def quantize(*i: Any) -> Any:
            value = tirx.nearbyint(x[i].astype("float32") / _f32(spec.scale))
            return _saturate(value, spec.result).astype(spec.result.dtype)

        return _kernel([x], te.compute(shape, quantize, "y"))
    if isinstance(spec, specs.Dequantize):
        x = te.placeholder(shape, spec.data, "x")

        def dequantize(*i: Any) -> Any:
            return ((x[i].astype("int32") - spec.zero_point).astype("float32") * _f32(spec.scale)).astype(spec.result)

        return _kernel([x], te.compute(shape, dequantize, "y"))
    if isinstance(spec, specs.Add):
        a, b = te.placeholder(shape, spec.a, "a"), te.placeholder(shape, spec.b, "b")

        def add(*i: Any) -> Any:
            if spec.sum is not None:
                return _sum(a[i].astype("float32"), b[i], spec.sum).astype(spec.sum.result.dtype)
            return _clamp(a[i].astype("float32") + b[i].astype("float32"), *spec.clamp).astype(spec.a)

        return _kernel([a, b], te.compute(shape, add, "y"))
    x = te.placeholder(shape, spec.data, "x")
    table = te.placeholder((256,), spec.result, "table")
    lowest = int(np.iinfo(spec.data).min)
    return _kernel([x, table], te.compute(shape, lambda *i: table[x[i].astype("int32") - lowest], "y"))


def _kernel(inputs: list[Any], y: Any) -> Kernel:
    return Kernel(te.create_prim_func([*inputs, y]), tuple(int(e) for e in y.shape), str(y.dtype))

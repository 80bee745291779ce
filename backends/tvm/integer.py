"""Emit kernels on codes: each kernel that the simulation computes in torch becomes the compiled one with the same arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm import tables
from graphopt.backends.tvm.layouts import Value, channels_last, plain
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Add, Codes, Conv, Dequantize, Epilogue, Lookup, Pool, Quantize, Sum
from graphopt.deploy import Grid
from graphopt.errors import GraphoptError
from graphopt.integers.arithmetic import Table, f32
from graphopt.integers.fusion import Kernel
from graphopt.integers.kernels import AveragePool, LayerKernel, Softmax
from graphopt.ops import argument, family, shape


def codes_of(grid: Grid) -> Codes:
    return Codes(dtype_of(grid), grid.zero_point, grid.quant_min, grid.quant_max)


def dtype_of(grid: Grid) -> str:
    return str(grid.dtype).removeprefix("torch.")


def emit_kernel(program: Program, node: Node) -> Value:
    """Emit a call of a `Kernel`."""
    kernel: Any = node.target
    function, name = kernel.function, kernel.__name__
    if isinstance(function, LayerKernel):
        return emit_layer(program, node)
    if name == "add":
        return _add(program, node, kernel)
    if name == "mul":
        return _multiply(program, node, kernel)
    if isinstance(function, Table):
        return _look_up(program, node, kernel, function)
    if isinstance(function, Softmax):
        return _softmax(program, node, kernel, function)
    if isinstance(function, AveragePool):
        return _average(
            program, node, kernel, function.kernel, function.stride, function.padding, function.include_padding
        )
    assert name == "global_average_pool", name
    size = shape(node.args[0])[2:]  # type: ignore[arg-type]
    return _average(program, node, kernel, size, size, (0,) * len(size), True)


# ---- Layers ---------------------------------------------------------------------------------------------------------


def emit_layer(program: Program, node: Node, added: Node | None = None) -> Value:
    """A convolution or linear layer; `added`: the sum behind it whose first operand it is, which is computed in its registers."""
    kernel: Any = node.target
    f: LayerKernel = kernel.function
    (x,) = kernel.grids
    source, weight = layer_input(program, node.args[0], f.weight, node)  # type: ignore[arg-type]
    if int(weight.min()) < -128 or int(weight.max()) > 127:
        raise GraphoptError(
            f"{program.graph.site(node)} ({kernel.__name__}): its weights have a zero point and need 9 bits, for which "
            "there are no TVM kernels; use symmetric weights (Format(symmetric=True))"
        )
    result = node if added is None else added
    total = None
    operands: list[Any] = []
    if added is not None:
        sum_kernel: Any = added.target
        a, b = sum_kernel.grids
        total = Sum.of(a[:2], b[:2], sum_kernel.grid.scale, codes_of(sum_kernel.grid))
        operands = [added.args[1]]
    own = kernel.grid
    epilogue = Epilogue(
        bias=f.bias is not None,
        result=codes_of(own) if own is not None else None,
        residual=dtype_of(sum_kernel.grids[1]) if total is not None else None,
        sum=total,
    )
    spec = layer_spec(source, weight.shape, f.window, dtype_of(x), x.zero_point, epilogue)
    scale = f.scale / f32(own.scale) if own is not None else f.scale
    constants = program.kernel(spec).constants(
        weight.to(torch.int8).numpy(), None if f.bias is None else f.bias.int().numpy(), scale.reshape(-1).numpy()
    )
    program.integer(node, spec.macs)
    return call_layer(program, spec, source, operands, constants, shape(result))


def layer_input(program: Program, node: Node, weight: torch.Tensor, reader: Node) -> tuple[Value, torch.Tensor]:
    """What a layer reads, as an image with channels innermost, and its weight as [O, C / groups, kh, kw].

    A linear layer reads rows as pixels. Behind a flattened image it is a convolution as large as the image, so that codes need
    not be brought into torch's order.
    """
    if weight.dim() == 2:
        image = _flattened(node)
        if image is not None and channels_last(len(shape(image))) == program.value(image).order:
            sizes = shape(image)[1:]
            return _image(program, program.value(image)), weight.reshape(len(weight), sizes[0], *_two(sizes[1:]))
        value = program.plain(program.value(node))
        rows = prod(value.shape[:-1])
        pixels = (1, 1, rows, value.shape[-1])
        return Value(program.reshaped(value, pixels), (1, value.shape[-1], 1, rows), channels_last(4)), weight[
            :, :, None, None
        ]
    if weight.dim() > 4:
        site = program.graph.site(reader)
        raise GraphoptError(
            f"{site}: there is no TVM kernel for integer convolutions over three dimensions; "
            f"leave it in float with formats={{{site!r}: None}}"
        )
    return _image(program, program.value(node)), weight.reshape(*weight.shape[:2], *_two(weight.shape[2:]))


def _flattened(node: Node) -> Node | None:
    """The image whose dimensions behind the batch this reshape joins, if they are more than channels."""
    if family(node) != "reshape" or len(shape(node)) != 2:
        return None
    image: Any = node.args[0]
    whole = shape(image)[0] == shape(node)[0] and 3 <= len(shape(image)) <= 4
    return image if whole else None


def _two(sizes: Sequence[int]) -> tuple[int, int]:
    """Sizes of an image; a signal is one of height 1."""
    return (int(sizes[0]), int(sizes[1])) if len(sizes) == 2 else (1, int(sizes[0]))


def _image(program: Program, value: Value) -> Value:
    """A signal or an image as [N, C, H, W] with channels innermost."""
    value = program.laid_out(value, channels_last(len(value.shape)))
    n, c, *sizes = value.shape
    height, width = _two(sizes)
    return Value(program.reshaped(value, (n, height, width, c)), (n, c, height, width), channels_last(4))


def _each(values: Sequence[int], filler: int) -> tuple[int, int]:
    return (
        (int(values[0]), int(values[1]))
        if len(values) == 2
        else (filler, int(values[0]))
        if values
        else (filler, filler)
    )


def layer_spec(
    source: Value, weight: Sequence[int], window: Any, data: str, zero_point: int, epilogue: Epilogue
) -> Conv:
    top, left = _each(window.padding, 0)
    return Conv(
        shape=source.stored,  # type: ignore[arg-type]
        channels=int(weight[0]),
        kernel=(int(weight[2]), int(weight[3])),
        stride=_each(window.stride, 1),
        padding=((top, top), (left, left)),
        dilation=_each(window.dilation, 1),
        groups=window.groups,
        data=data,
        zero_point=zero_point,
        epilogue=epilogue,
    )


def call_layer(
    program: Program, spec: Conv, source: Value, operands: Sequence[Any], constants: Sequence[Any], out: Sequence[int]
) -> Value:
    """Call a layer's kernel; `operands`: nodes it adds, `out`: torch's shape of the result."""
    order = channels_last(len(out)) if len(out) > 2 and spec.shape[:3] != (1, 1, prod(out[:-1])) else plain(len(out))
    added = [program.reshaped(program.laid_out(program.value(o), order), spec.result_shape) for o in operands]
    result = program.call(spec, [source.expr, *added], constants)
    stored = tuple(out[d] for d in order)
    if stored != spec.result_shape:
        result = program.builder.emit(relax.op.reshape(result, list(stored)))
    return Value(result, tuple(out), order)


# ---- Everything else ------------------------------------------------------------------------------------------------


def _add(program: Program, node: Node, kernel: Kernel) -> Value:
    assert kernel.grid is not None
    a, b = kernel.grids
    how = Sum.of(a[:2], b[:2], kernel.grid.scale, codes_of(kernel.grid))
    left, right, order = operands(program, node)
    stored = tuple(shape(node)[d] for d in order)
    full = [
        e if s == stored else program.builder.emit(relax.op.broadcast_to(e, list(stored))) for e, s in (left, right)
    ]
    return Value(program.call(Add(stored, dtype_of(a), dtype_of(b), how), full), shape(node), order)


def operands(
    program: Program, node: Node
) -> tuple[tuple[Any, tuple[int, ...]], tuple[Any, tuple[int, ...]], tuple[int, ...]]:
    """Two operands in one order of dimensions, each an expression with its sizes in memory, of equal rank."""
    out = shape(node)
    values = [program.value(a) for a in node.args[:2]]
    full = [v for v in values if len(v.shape) == len(out)]
    order = max(full, key=lambda v: prod(v.shape)).order
    found = []
    for value in values:
        if len(value.shape) < len(out):
            value = program.plain(value)
            sizes = (*[1] * (len(out) - len(value.shape)), *value.shape)
            value = Value(program.reshaped(value, sizes), sizes, plain(len(out)))
        value = program.laid_out(value, order)
        found.append((value.expr, value.stored))
    return found[0], found[1], order


def _multiply(program: Program, node: Node, kernel: Kernel) -> Value:
    (a, b), y = kernel.grids, kernel.grid
    assert y is not None
    left, right, order = operands(program, node)
    stored = tuple(shape(node)[d] for d in order)
    key = ("mul", left[1], right[1], *kernel.grids, y)
    result = program.compute(
        key, lambda: tables.product(left[1], right[1], stored, a, b, y), [left[0], right[0]], stored, dtype_of(y), "mul"
    )
    return Value(result, shape(node), order)


def _look_up(program: Program, node: Node, kernel: Kernel, table: Table) -> Value:
    assert kernel.grid is not None
    source = program.value(node.args[0])
    entries = table.entries.to(kernel.grid.dtype).numpy()
    spec = Lookup(source.stored, dtype_of(kernel.grids[0]), dtype_of(kernel.grid))
    return Value(program.call(spec, [source.expr], [entries]), source.shape, source.order)


def _softmax(program: Program, node: Node, kernel: Kernel, function: Softmax) -> Value:
    assert kernel.grid is not None
    source = program.value(node.args[0])
    rank = len(source.shape)
    dim = function.dim % rank
    source = program.laid_out(source, (*[d for d in source.order if d != dim], dim))  # along rows
    length = source.shape[dim]
    rows = (prod(source.shape) // length, length)
    exponentials = relax.const(function.exponentials(length).numpy(), "float32")
    key = ("softmax", rows, *kernel.grids, kernel.grid)
    result = program.compute(
        key, lambda: tables.softmax(rows, kernel.grids[0], kernel.grid), [program.reshaped(source, rows), exponentials], rows,
        dtype_of(kernel.grid), "softmax",
    )  # fmt: skip
    return Value(program.builder.emit(relax.op.reshape(result, list(source.stored))), source.shape, source.order)


def _average(
    program: Program,
    node: Node,
    kernel: Kernel,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    counts: bool,
) -> Value:
    x, y = kernel.grids[0], kernel.grid
    assert y is not None
    image = _image(program, program.value(node.args[0]))
    spec = Pool(
        "average", image.stored, _each(size, 1), _each(stride, 1), _pads(image, node, size, stride, padding),  # type: ignore[arg-type]
        data=dtype_of(x), zero_point=x.zero_point, scale=x.scale, result=codes_of(y), result_scale=y.scale, count_padding=counts,
    )  # fmt: skip
    return pooled(program, spec, image, shape(node))


def _pads(
    image: Value,
    node: Node,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Any:
    """As far as the last window reaches, which may be beyond the padding or end before it."""
    found = []
    sizes, out = image.shape[2:], _two(shape(node)[2:])
    for n, o, k, s, p, d in zip(
        sizes, out, _each(size, 1), _each(stride, 1), _each(padding, 0), _each(dilation, 1), strict=True
    ):
        found.append((p, max((o - 1) * s + d * (k - 1) + 1 - p - n, 0)))
    return tuple(found)


def pooled(program: Program, spec: Pool, image: Value, out: Sequence[int]) -> Value:
    result = program.call(spec, [image.expr])
    order = channels_last(len(out))
    stored = tuple(out[d] for d in order)
    if stored != spec.result_shape:
        result = program.builder.emit(relax.op.reshape(result, list(stored)))
    return Value(result, tuple(out), order)


def emit_max_pool(program: Program, node: Node) -> Value:
    """Of codes or floats."""
    image = _image(program, program.value(node.args[0]))

    dims = len(shape(node)) - 2

    def each(name: str) -> list[int]:
        value = argument(node, name)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return values * dims if len(values) == 1 else values

    size, stride, padding, dilation = map(each, ("kernel_size", "stride", "padding", "dilation"))
    data = str(node.meta["val"].dtype).removeprefix("torch.")
    pads = _pads(image, node, size, stride or size, padding, dilation)
    spec = Pool("max", image.stored, _each(size, 1), _each(stride or size, 1), pads, _each(dilation, 1), data=data)  # type: ignore[arg-type]
    return pooled(program, spec, image, shape(node))


def emit_quantize(program: Program, node: Node) -> Value:
    source, grid = program.value(node.args[0]), Grid(*node.args[1:])  # type: ignore[arg-type]
    spec = Quantize(source.stored, grid.scale, codes_of(grid))
    return Value(program.call(spec, [source.expr]), source.shape, source.order)


def emit_dequantize(program: Program, node: Node) -> Value:
    source, grid = program.value(node.args[0]), Grid(*node.args[1:])  # type: ignore[arg-type]
    spec = Dequantize(source.stored, grid.scale, grid.zero_point, dtype_of(grid))
    return Value(program.call(spec, [source.expr]), source.shape, source.order)


def emit_clip_codes(program: Program, node: Node) -> Value:
    """Codes clipped to two ends: a table."""
    source = program.value(node.args[0])
    low, high = node.args[1:]
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    info = np.iinfo(dtype)
    entries = np.arange(info.min, info.max + 1).clip(low, high).astype(dtype)  # type: ignore[arg-type]
    return Value(
        program.call(Lookup(source.stored, dtype, dtype), [source.expr], [entries]), source.shape, source.order
    )

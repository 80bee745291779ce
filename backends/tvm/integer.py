"""Emit kernels on codes: each kernel that the simulation computes in torch becomes the compiled one with the same arithmetic."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm.few_bits import with_few_bits
from graphopt.backends.tvm.grids import codes_of, dtype_of
from graphopt.backends.tvm.images import call_layer, layer_input, layer_spec, order_of
from graphopt.backends.tvm.layouts import Value, channels_last, plain
from graphopt.backends.tvm.pools import emit_average
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Add, Dequantize, Epilogue, Lookup, Multiply, Planes, Quantize, Sum
from graphopt.backends.tvm.softmax import softmax
from graphopt.ir.calls import argument, operand, shape
from graphopt.lowering.integers.arithmetic import Table, f32
from graphopt.lowering.integers.fusion import BYTES, Kernel
from graphopt.lowering.integers.kernels import LINEAR, AveragePool, LayerKernel, Softmax
from graphopt.lowering.integers.legalize import CLIP_CODES
from graphopt.lowering.integers.slopes import Slopes
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.utils.errors import GraphoptError, InputError
from graphopt.utils.printing import dtype_name

Array = np.ndarray[Any, Any]
FEW = 4  # channels of an image that are interleaved in registers


def emit_kernel(program: Program, node: Node) -> Value:
    """Emit a call of a `Kernel`."""
    kernel: Any = node.target
    function, name = kernel.function, kernel.__name__
    if isinstance(function, LayerKernel):
        return emit_layer(program, node)
    if name == "add":
        return emit_add(program, node)
    if name == "mul":
        return _multiply(program, node, kernel)
    if isinstance(function, Table):
        return emit_lookup(program, node)
    if isinstance(function, Slopes):
        return _emit_slopes(program, node, function)
    if isinstance(function, Softmax):
        return _softmax(program, node, kernel, function)
    if isinstance(function, AveragePool):
        return emit_average(
            program, node, kernel, function.kernel, function.stride, function.padding, function.include_padding
        )
    assert name == "global_average_pool", name
    size = shape(operand(node))[2:]
    return emit_average(program, node, kernel, size, size, (0,) * len(size), True)


def entries_of(node: Node) -> Array | None:
    """What a function of one code gives for each, the lowest first; None where the call is something else."""
    if node.target is CLIP_CODES:
        low, high = node.args[1:]
        dtype = dtype_name(node.meta["val"].dtype)
        info = np.iinfo(dtype)
        return np.arange(info.min, info.max + 1).clip(low, high).astype(dtype)  # type: ignore[arg-type]
    kernel = node.target
    if not isinstance(kernel, Kernel) or not isinstance(kernel.function, Table) or len(kernel.grids) != 1:
        return None
    assert kernel.grid is not None
    return kernel.function.entries.to(kernel.grid.dtype).numpy()


def slopes_of(node: Node) -> Slopes | None:
    """Of a function of one code that has two for each channel, or for all; None where it has not."""
    kernel: Any = node.target
    function = getattr(kernel, "function", None)
    if isinstance(function, Slopes):
        return function
    entries = entries_of(node)
    if entries is None or not isinstance(kernel, Kernel) or kernel.grid is None:
        return None
    return Slopes.fit(torch.from_numpy(entries)[None], kernel.grids[0], kernel.grid)


def emit_layer(
    program: Program,
    node: Node,
    added: Node | None = None,
    table: Node | None = None,
    slopes: Node | None = None,
    pad: Node | None = None,
) -> Value:
    """A convolution or linear layer.

    `added`: the sum behind it; `table` or `slopes`: the function of one code behind that. Both are computed in its registers.
    `pad`: in front of it, with codes of zero.
    """
    kernel: Any = node.target
    f: LayerKernel = kernel.function
    (x,) = kernel.grids
    read: Any = (node if pad is None else pad).args[0]
    source, weight = layer_input(program, read, f.weight, node)
    if int(weight.min()) < -128 or int(weight.max()) > 127:
        raise GraphoptError(
            f"{program.graph.site(node)} ({kernel.__name__}): its weights have a zero point and need 9 bits, for which "
            "there are no TVM kernels; use symmetric weights (Format(symmetric=True))"
        )
    result = table or slopes or added or node
    entries = None if table is None else entries_of(table)
    total, second = None, False
    operands: list[Any] = []
    if added is not None:
        sum_kernel: Any = added.target
        total = _sum_of(sum_kernel)
        second = added.args[1] is node
        operands = [added.args[0 if second else 1]]
    own = kernel.grid
    epilogue = Epilogue(
        bias=f.bias is not None,
        result=codes_of(own) if own is not None else None,
        residual=dtype_of(sum_kernel.grids[0 if second else 1]) if total is not None else None,
        sum=total,
        second=second,
        slopes=codes_of(slopes.target.grid) if slopes is not None else None,  # type: ignore[union-attr]
        table=None if entries is None else str(entries.dtype),
    )
    pads = () if pad is None else argument(pad, "pad")
    spec = layer_spec(source, weight.shape, f.window, dtype_of(x), x.zero_point, epilogue, pads)
    spec, how = with_few_bits(spec, weight, read, program.machine)
    if how is not None:
        program.audit.few_bits[program.graph.site(node)] = how
    scale = f.scale / f32(own.scale) if own is not None else f.scale
    multiplier = scale.reshape(-1)
    if slopes is not None and (function := slopes_of(slopes)) is not None:
        multiplier = function.rows(multiplier, spec.channels)
    constants = program.kernel(spec).constants(
        weight.to(torch.int8).numpy(),
        None if f.bias is None else f.bias.int().numpy(),
        multiplier.numpy(),
        entries,
    )
    program.integer(node, spec.macs)
    out = shape(result)
    return call_layer(program, spec, source, operands, constants, out, order_of(f.weight, len(out)))


def emit_add(program: Program, node: Node, table: Node | None = None) -> Value:
    """A sum of codes; `table`: the function of one code behind it."""
    kernel: Any = node.target
    a, b = kernel.grids
    how = _sum_of(kernel)
    pair = program.operands(node)
    order = pair[0].order
    stored = tuple(shape(node)[d] for d in order)
    full = [
        v.expr if v.stored == stored else program.builder.emit(relax.op.broadcast_to(v.expr, list(stored)))
        for v in pair
    ]
    entries = None if table is None else entries_of(table)
    spec = Add(stored, dtype_of(a), dtype_of(b), how, table=None if entries is None else str(entries.dtype))
    return Value(program.call(spec, full, program.kernel(spec).table(entries)), shape(node), order)


def _sum_of(kernel: Any) -> Sum:
    a, b = kernel.grids
    return Sum.of(a[:2], b[:2], kernel.grid.scale, codes_of(kernel.grid))


def _multiply(program: Program, node: Node, kernel: Kernel) -> Value:
    (a, b), y = kernel.grids, kernel.grid
    assert y is not None
    left, right = program.operands(node)
    ratio = float(f32(a.scale) * f32(b.scale) / f32(y.scale))
    spec = Multiply(
        left.stored, right.stored, a.zero_point, b.zero_point, ratio, codes_of(y), a=dtype_of(a), b=dtype_of(b)
    )
    return Value(program.call(spec, [left.expr, right.expr]), shape(node), left.order)


def emit_lookup(program: Program, node: Node) -> Value:
    """A function of one code by itself."""
    source, entries = program.value(node.args[0]), entries_of(node)
    assert entries is not None
    data = dtype_name(node.all_input_nodes[0].meta["val"].dtype)
    spec = Lookup(source.stored, data, str(entries.dtype))
    return Value(program.call(spec, [source.expr], program.kernel(spec).table(entries)), source.shape, source.order)


def _emit_slopes(program: Program, node: Node, slopes: Slopes) -> Value:
    """By itself: what follows a depthwise layer that gives every code back."""
    x, y = slopes.x, slopes.y
    rank = len(shape(node))
    value = program.laid_out(program.value(node.args[0]), channels_last(rank))
    images, channels, *sizes = value.shape
    image = (images, 1, prod(sizes), channels)
    source = Value(program.reshaped(value, image), (images, channels, 1, prod(sizes)), channels_last(4))
    epilogue = Epilogue(False, codes_of(x), slopes=codes_of(y))
    window = LINEAR._replace(groups=channels)
    spec = layer_spec(source, (channels, 1, 1, 1), window, dtype_of(x), x.zero_point, epilogue)
    rows = slopes.rows(torch.ones(1), channels)
    constants = program.kernel(spec).constants(np.ones((channels, 1, 1, 1), np.int8), None, rows.numpy())
    return call_layer(program, spec, source, [], constants, shape(node), channels_last(rank))


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
        key, lambda: softmax(rows, kernel.grids[0], kernel.grid), [program.reshaped(source, rows), exponentials], rows,
        dtype_of(kernel.grid), "softmax",
    )  # fmt: skip
    return Value(program.builder.emit(relax.op.reshape(result, list(source.stored))), source.shape, source.order)


def emit_quantize(program: Program, node: Node) -> Value:
    source, grid = program.value(operand(node)), QuantizationParameters.of(node)
    if grid.dtype not in BYTES:
        site = program.graph.site(operand(node))
        raise InputError(
            f"{site}: its codes are {dtype_of(grid)}, and TVM kernels take codes of 8 bits or fewer; give its activations such a "
            f"format, or leave it in float with formats={{{site!r}: None}}"
        )
    data = dtype_name(operand(node).meta["val"].dtype)
    if _wanted_channels_last(node, source):
        images, channels, *sizes = source.shape
        pixels = prod(sizes)
        planes = program.reshaped(source, (images, channels, pixels))
        codes = program.call(Planes((images, channels, pixels), grid.scale, codes_of(grid), data), [planes])
        order = channels_last(len(source.shape))
        stored = [source.shape[d] for d in order]
        return Value(program.builder.emit(relax.op.reshape(codes, stored)), source.shape, order)
    spec = Quantize(source.stored, grid.scale, codes_of(grid), data)
    return Value(program.call(spec, [source.expr]), source.shape, source.order)


def _wanted_channels_last(node: Node, source: Value) -> bool:
    """Images of a few planes, which layers read."""
    if not 3 <= len(source.shape) <= 4 or source.order != plain(len(source.shape)) or not 1 < source.shape[1] <= FEW:
        return False
    functions = [getattr(reader.target, "function", None) for reader in node.users]
    return any(isinstance(f, LayerKernel) and f.weight.dim() > 2 for f in functions)


def emit_dequantize(program: Program, node: Node) -> Value:
    source, grid = program.value(operand(node)), QuantizationParameters.of(node)
    spec = Dequantize(source.stored, grid.scale, grid.zero_point, dtype_of(grid))
    return Value(program.call(spec, [source.expr]), source.shape, source.order)

"""Emit kernels on codes: each kernel that the simulation computes in torch becomes the compiled one with the same arithmetic."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm import tables
from graphopt.backends.tvm.grids import codes_of, dtype_of
from graphopt.backends.tvm.images import call_layer, layer_input, layer_spec
from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.pools import emit_average
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Add, Dequantize, Epilogue, Lookup, Quantize, Sum
from graphopt.ir.calls import operand, shape
from graphopt.lowering.integers.arithmetic import Table, f32
from graphopt.lowering.integers.fusion import BYTES, Kernel
from graphopt.lowering.integers.kernels import AveragePool, LayerKernel, Softmax
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.utils.errors import GraphoptError, InputError


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
        return emit_average(
            program, node, kernel, function.kernel, function.stride, function.padding, function.include_padding
        )
    assert name == "global_average_pool", name
    size = shape(operand(node))[2:]
    return emit_average(program, node, kernel, size, size, (0,) * len(size), True)


def emit_layer(program: Program, node: Node, added: Node | None = None) -> Value:
    """A convolution or linear layer; `added`: the sum behind it that is computed in its registers."""
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
    total, second = None, False
    operands: list[Any] = []
    if added is not None:
        sum_kernel: Any = added.target
        a, b = sum_kernel.grids
        total = Sum.of(a[:2], b[:2], sum_kernel.grid.scale, codes_of(sum_kernel.grid))
        second = added.args[1] is node
        operands = [added.args[0 if second else 1]]
    own = kernel.grid
    epilogue = Epilogue(
        bias=f.bias is not None,
        result=codes_of(own) if own is not None else None,
        residual=dtype_of(sum_kernel.grids[0 if second else 1]) if total is not None else None,
        sum=total,
        second=second,
    )
    spec = layer_spec(source, weight.shape, f.window, dtype_of(x), x.zero_point, epilogue)
    scale = f.scale / f32(own.scale) if own is not None else f.scale
    constants = program.kernel(spec).constants(
        weight.to(torch.int8).numpy(), None if f.bias is None else f.bias.int().numpy(), scale.reshape(-1).numpy()
    )
    program.integer(node, spec.macs)
    return call_layer(program, spec, source, operands, constants, shape(result), rows=f.weight.dim() == 2)


def _add(program: Program, node: Node, kernel: Kernel) -> Value:
    assert kernel.grid is not None
    a, b = kernel.grids
    how = Sum.of(a[:2], b[:2], kernel.grid.scale, codes_of(kernel.grid))
    pair = program.operands(node)
    order = pair[0].order
    stored = tuple(shape(node)[d] for d in order)
    full = [
        v.expr if v.stored == stored else program.builder.emit(relax.op.broadcast_to(v.expr, list(stored)))
        for v in pair
    ]
    return Value(program.call(Add(stored, dtype_of(a), dtype_of(b), how), full), shape(node), order)


def _multiply(program: Program, node: Node, kernel: Kernel) -> Value:
    (a, b), y = kernel.grids, kernel.grid
    assert y is not None
    left, right = program.operands(node)
    stored = tuple(shape(node)[d] for d in left.order)
    key = ("mul", left.stored, right.stored, *kernel.grids, y)
    result = program.compute(
        key, lambda: tables.product(left.stored, right.stored, stored, a, b, y), [left.expr, right.expr], stored,
        dtype_of(y), "mul",
    )  # fmt: skip
    return Value(result, shape(node), left.order)


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


def emit_quantize(program: Program, node: Node) -> Value:
    source, grid = program.value(operand(node)), QuantizationParameters.of(node)
    if grid.dtype not in BYTES:
        site = program.graph.site(operand(node))
        raise InputError(
            f"{site}: its codes are {dtype_of(grid)}, and TVM kernels take codes of 8 bits or fewer; give its activations such a "
            f"format, or leave it in float with formats={{{site!r}: None}}"
        )
    spec = Quantize(source.stored, grid.scale, codes_of(grid))
    return Value(program.call(spec, [source.expr]), source.shape, source.order)


def emit_dequantize(program: Program, node: Node) -> Value:
    source, grid = program.value(operand(node)), QuantizationParameters.of(node)
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

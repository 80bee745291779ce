"""One element in, one out: to codes and back, sums, tables."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import emit, exact, rounding
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.epilogue import INTEGER
from graphopt.backends.tvm.schedules.gpu import threads
from graphopt.backends.tvm.schedules.specs import Add, Dequantize, Elementwise, Lookup, Quantize

CHUNK = 4096  # elements of a task


def elementwise(spec: Elementwise, machine: Processor) -> Kernel:
    """The function takes the operands, then the table of a `Lookup` (256 entries, that of the lowest code first)."""
    inputs, result, compute, lanes = _parts(spec, machine.lanes("float32"))
    arguments = inputs | {"y": (spec.shape, result)}

    def body(*flats: Flat) -> None:
        count = prod(spec.shape)
        if isinstance(machine, Gpu):
            with threads.each(count, machine) as i:
                flats[-1].store(compute(flats[:-1], i, 1), i)
            return

        def chunk(start: Expr, size: int) -> None:
            emit.in_vectors(size, lanes, lambda i, n: flats[-1].store(compute(flats[:-1], start + i, n), start + i, n))

        if count // CHUNK:
            with emit.tasks(count // CHUNK, 8 * count, machine) as task:
                chunk(task * CHUNK, CHUNK)
        chunk(count // CHUNK * CHUNK, count % CHUNK)

    return Kernel(emit.function(arguments, body), spec.shape, result)


Compute = Callable[[tuple[Flat, ...], Expr, int], Expr]


def _parts(spec: Elementwise, lanes: int) -> tuple[dict[str, tuple[tuple[int, ...], str]], str, Compute, int]:
    """Operands, dtype of the result, (operands, index, lanes) -> result, lanes."""
    if isinstance(spec, Quantize):
        return {"x": (spec.shape, spec.data)}, spec.result.dtype, lambda x, i, n: _quantize(spec, x[0], i, n), lanes
    if isinstance(spec, Dequantize):
        return {"x": (spec.shape, spec.data)}, spec.result, lambda x, i, n: _dequantize(spec, x[0], i, n), lanes
    if isinstance(spec, Add):
        result = spec.sum.result.dtype if spec.sum else spec.a
        return (
            {"a": (spec.shape, spec.a), "b": (spec.shape, spec.b)},
            result,
            lambda x, i, n: _add(spec, x, i, n),
            lanes,
        )
    table = {"x": (spec.shape, spec.data), "table": ((256,), spec.result)}
    return table, spec.result, lambda x, i, n: _lookup(spec, x[0], x[1], i), 1


def _quantize(spec: Quantize, x: Flat, i: Expr, lanes: int) -> Expr:
    value = emit.cast(x.load(i, lanes), "float32", lanes)
    steps = exact.quotient(value, emit.constant(spec.scale, "float32", lanes))
    return rounding.to_codes(steps, spec.result, lanes, spec.result.zero_point)


def _dequantize(spec: Dequantize, x: Flat, i: Expr, lanes: int) -> Expr:
    steps = emit.cast(x.load(i, lanes), "int32", lanes) - emit.constant(spec.zero_point, "int32", lanes)
    value = emit.cast(steps, "float32", lanes) * emit.constant(spec.scale, "float32", lanes)
    return emit.cast(value, spec.result, lanes)


def _add(spec: Add, operands: tuple[Flat, ...], i: Expr, lanes: int) -> Expr:
    a, b = (_as_float(operand, i, lanes) for operand in operands)
    if spec.sum is not None:
        return rounding.add_codes(a, b, spec.sum, lanes)
    return emit.cast(rounding.clamp(a + b, *spec.clamp, lanes), spec.a, lanes)


def _as_float(x: Flat, i: Expr, lanes: int) -> Expr:
    value = x.load(i, lanes)
    return emit.cast(emit.cast(value, "int32", lanes) if x.dtype in INTEGER else value, "float32", lanes)


def _lookup(spec: Lookup, x: Flat, table: Flat, i: Expr) -> Expr:
    return table.load(emit.cast(x.load(i), "int32") - int(np.iinfo(spec.data).min))

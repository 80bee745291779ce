"""One element in, one out: to codes and back, sums, tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import emit, exact, narrowing, rounding
from graphopt.backends.tvm.schedules.emit import Array, Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.epilogue import INTEGER
from graphopt.backends.tvm.schedules.gpu import threads
from graphopt.backends.tvm.schedules.lookup import Rows, arranged
from graphopt.backends.tvm.schedules.specs import Add, Dequantize, Elementwise, Lookup, Quantize

CHUNK = 4096  # elements of a task

Shapes = dict[str, tuple[tuple[int, ...], str]]
Compute = Callable[[tuple[Flat, ...], Expr, int, int], list[Expr]]
"""(operands, index, vectors, lanes) -> results of neighbouring vectors."""


def elementwise(spec: Elementwise, machine: Processor) -> Kernel:
    """The function takes the operands, then the table, if there is one."""
    inputs, result, compute, lanes = _parts(spec, machine)
    arguments = inputs | {"y": (spec.shape, result)}
    together = narrowing.TOGETHER

    def body(*flats: Flat) -> None:
        def some(i: Expr, vectors: int, lanes: int) -> None:
            for v, value in enumerate(compute(flats[:-1], i, vectors, lanes)):
                flats[-1].store(value, i + v * lanes, lanes)

        count = prod(spec.shape)
        if isinstance(machine, Gpu):
            with threads.each(count, machine) as i:
                some(i, 1, 1)
            return

        def chunk(start: Expr, size: int) -> None:
            emit.in_vectors(
                size, together * lanes, lambda i, n: some(start + i, *((1, 1) if n == 1 else (together, lanes)))
            )

        if count // CHUNK:
            with emit.tasks(count // CHUNK, 8 * count, machine) as task:
                chunk(task * CHUNK, CHUNK)
        chunk(count // CHUNK * CHUNK, count % CHUNK)

    return Kernel(emit.function(arguments, body), spec.shape, result, arrange=_arrange(spec))


def _arrange(spec: Elementwise) -> Callable[[Array], Array] | None:
    if isinstance(spec, Lookup):
        return partial(arranged, data=spec.data)
    return partial(arranged, data=spec.sum.result.dtype) if isinstance(spec, Add) and spec.sum and spec.table else None


def _parts(spec: Elementwise, machine: Processor) -> tuple[Shapes, str, Compute, int]:
    """Operands, dtype of the result, how it is computed, lanes of a vector."""
    lanes = machine.lanes("float32")
    if isinstance(spec, Quantize):
        return {"x": (spec.shape, spec.data)}, spec.result.dtype, partial(_quantize, spec, machine), lanes
    if isinstance(spec, Dequantize):
        return {"x": (spec.shape, spec.data)}, spec.result, partial(_dequantize, spec), lanes
    if isinstance(spec, Add):
        result = spec.table or (spec.sum.result.dtype if spec.sum else spec.a)
        table = {"table": (Rows.SHAPE, spec.table)} if spec.table else {}
        return (
            {"a": (spec.shape, spec.a), "b": (spec.shape, spec.b), **table},
            result,
            partial(_add, spec, machine),
            lanes,
        )
    looked_up = {"x": (spec.shape, spec.data), "table": (Rows.SHAPE, spec.result)}
    return looked_up, spec.result, partial(_lookup, spec, machine), machine.lanes(spec.data)


def _loads(x: Flat, i: Expr, vectors: int, lanes: int) -> list[Expr]:
    return [x.load(i + v * lanes, lanes) for v in range(vectors)]


def _quantize(
    spec: Quantize, machine: Processor, operands: tuple[Flat, ...], i: Expr, vectors: int, lanes: int
) -> list[Expr]:
    scale = emit.constant(spec.scale, "float32", lanes)
    steps = [
        exact.quotient(emit.cast(value, "float32", lanes), scale) for value in _loads(operands[0], i, vectors, lanes)
    ]
    return rounding.to_codes(steps, spec.result, lanes, spec.result.zero_point, machine)


def _dequantize(spec: Dequantize, operands: tuple[Flat, ...], i: Expr, vectors: int, lanes: int) -> list[Expr]:
    zero_point, scale = emit.constant(spec.zero_point, "int32", lanes), emit.constant(spec.scale, "float32", lanes)
    steps = [emit.cast(code, "int32", lanes) - zero_point for code in _loads(operands[0], i, vectors, lanes)]
    return [emit.cast(emit.cast(step, "float32", lanes) * scale, spec.result, lanes) for step in steps]


def _add(spec: Add, machine: Processor, operands: tuple[Flat, ...], i: Expr, vectors: int, lanes: int) -> list[Expr]:
    pairs = list(
        zip(*([_as_float(v, x.dtype, lanes) for v in _loads(x, i, vectors, lanes)] for x in operands[:2]), strict=True)
    )
    if spec.sum is None:
        return [emit.cast(rounding.clamp(a + b, *spec.clamp, lanes), spec.a, lanes) for a, b in pairs]
    table = Rows(operands[2], machine).of if spec.table else None
    sums = [rounding.added(a, b, spec.sum, lanes) for a, b in pairs]
    return rounding.to_codes(sums, spec.sum.result, lanes, 0, machine, table)


def _as_float(value: Expr, dtype: str, lanes: int) -> Expr:
    return emit.cast(emit.cast(value, "int32", lanes) if dtype in INTEGER else value, "float32", lanes)


def _lookup(
    spec: Lookup, machine: Processor, operands: tuple[Flat, ...], i: Expr, vectors: int, lanes: int
) -> list[Expr]:
    rows = Rows(operands[1], machine)
    return [rows.of(codes, lanes) for codes in _loads(operands[0], i, vectors, lanes)]

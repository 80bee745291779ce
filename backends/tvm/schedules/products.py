"""Products of codes, of which one operand may repeat along any dimensions: squeeze and excite, attention over pixels, gates.

    q = sat(rne(f32((a - z_a)(b - z_b)) * ratio + z))           ratio = s_a s_b / s_q; product and sum rounded apart

Differences of 8-bit codes and their product are whole numbers that float32 holds. Neighbouring dimensions along which the same
operands repeat are one; vectors go along the last, and an operand that repeats there is one element in every lane.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from graphopt.backends.tvm.machine import Gpu, Processor
from graphopt.backends.tvm.schedules import emit, exact, narrowing, rounding
from graphopt.backends.tvm.schedules.emit import Expr, Flat, Kernel
from graphopt.backends.tvm.schedules.gpu import threads
from graphopt.backends.tvm.schedules.specs import Multiply

Strides = tuple[int, int]  # of a and b


def multiply(spec: Multiply, machine: Processor) -> Kernel:
    """(a, b) -> codes."""
    sizes, strides = _dimensions(spec)
    arguments = {"a": (spec.a_shape, spec.a), "b": (spec.b_shape, spec.b), "y": (spec.shape, spec.result.dtype)}

    def body(a: Flat, b: Flat, y: Flat) -> None:
        def some(at: tuple[Expr, Expr], out: Expr, vectors: int, lanes: int) -> None:
            values = [_product(spec, a, b, at, strides[-1], v * lanes, lanes) for v in range(vectors)]
            for v, value in enumerate(rounding.to_codes(values, spec.result, lanes, 0, machine)):
                y.store(value, out + v * lanes, lanes)

        _loops(sizes, strides, machine, some)

    return Kernel(emit.function(arguments, body), spec.shape, spec.result.dtype)


def _product(spec: Multiply, a: Flat, b: Flat, at: tuple[Expr, Expr], along: Strides, offset: int, lanes: int) -> Expr:
    steps = []
    for x, index, stride, zero_point in zip((a, b), at, along, (spec.a_zero, spec.b_zero), strict=True):
        codes = x.load(index + offset, lanes) if stride else emit.splat(x.load(index), lanes)
        whole = emit.cast(codes, "int32", lanes) - emit.constant(zero_point, "int32", lanes)
        steps.append(emit.cast(whole, "float32", lanes))
    scaled = exact.product(steps[0] * steps[1], emit.constant(spec.ratio, "float32", lanes), lanes)
    return scaled + emit.constant(spec.result.zero_point, "float32", lanes)


def _dimensions(spec: Multiply) -> tuple[list[int], list[Strides]]:
    """Sizes and strides, of as few dimensions as there can be; a stride of 0 repeats."""
    sizes: list[int] = []
    strides: list[Strides] = []
    steps = [1, 1]
    for size, *operands in reversed(list(zip(spec.shape, spec.a_shape, spec.b_shape, strict=True))):
        if size == 1:
            continue
        own = tuple(step if n > 1 else 0 for step, n in zip(steps, operands, strict=True))
        steps = [step * n for step, n in zip(steps, operands, strict=True)]
        if sizes and all(s == inner * sizes[0] for s, inner in zip(own, strides[0], strict=True)):
            sizes[0] *= size
            continue
        sizes.insert(0, size)
        strides.insert(0, (own[0], own[1]))
    return sizes or [1], strides or [(0, 0)]


def _loops(
    sizes: list[int],
    strides: list[Strides],
    machine: Processor,
    some: Callable[[tuple[Expr, Expr], Expr, int, int], None],
) -> None:
    """some(indices of a and b, index of the result, vectors, lanes) until every result is there."""
    *outer, inner = sizes

    def place(row: Expr) -> tuple[Expr, Expr]:
        """Where the operands of a row begin."""
        at: list[Expr] = [0, 0]
        for size, along in zip(reversed(outer), reversed(strides[:-1]), strict=True):
            at = [index + row % size * stride for index, stride in zip(at, along, strict=True)]
            row = row // size
        return at[0], at[1]

    def moved(at: tuple[Expr, Expr], i: Expr) -> tuple[Expr, Expr]:
        return at[0] + i * strides[-1][0], at[1] + i * strides[-1][1]

    if isinstance(machine, Gpu):
        with threads.each(prod(sizes), machine) as index:
            some(moved(place(index // inner), index % inner), index, 1, 1)
        return
    lanes, together = machine.lanes("float32"), narrowing.TOGETHER
    while lanes > inner:
        lanes //= 2
    vectors = min(together, inner // lanes)
    width = vectors * lanes
    with emit.tasks(prod(outer), 8 * prod(sizes), machine) as row, emit.serial(-(-inner // width)) as step:
        first = emit.let(
            emit.minimum(step * width, inner - width)
        )  # the last ones are moved back, so that all are whole
        some(moved(place(row), first), row * inner + first, vectors, lanes)

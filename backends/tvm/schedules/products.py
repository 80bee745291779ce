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

ROWS = 16  # that share what they have in common, at most

Strides = tuple[int, int]  # of a and b


def multiply(spec: Multiply, machine: Processor) -> Kernel:
    """(a, b) -> codes."""
    sizes, strides = _dimensions(spec)
    arguments = {"a": (spec.a_shape, spec.a), "b": (spec.b_shape, spec.b), "y": (spec.shape, spec.result.dtype)}
    zero_points = spec.a_zero, spec.b_zero
    largest = spec.ratio * prod(255 + abs(z) for z in zero_points) + 255

    def body(a: Flat, b: Flat, y: Flat) -> None:
        def steps(operand: int, at: Expr, vectors: int, lanes: int) -> list[Expr]:
            x, zero_point = (a, b)[operand], zero_points[operand]
            if strides[-1][operand]:
                return [_steps(x.load(at + v * lanes, lanes), zero_point, lanes) for v in range(vectors)]
            return [_steps(emit.splat(x.load(at), lanes), zero_point, lanes)] * vectors

        def store(x: list[Expr], other: list[Expr], out: Expr, lanes: int) -> None:
            values = [_product(spec, one, two, lanes) for one, two in zip(x, other, strict=True)]
            bounded = largest < 2**31
            for v, value in enumerate(rounding.to_codes(values, spec.result, lanes, 0, machine, bounded=bounded)):
                y.store(value, out + v * lanes, lanes)

        _loops(sizes, strides, machine, steps, store)

    return Kernel(emit.function(arguments, body), spec.shape, spec.result.dtype)


def _steps(codes: Expr, zero_point: int, lanes: int) -> Expr:
    """Distances from the zero point, float32."""
    return emit.cast(emit.cast(codes, "int32", lanes) - emit.constant(zero_point, "int32", lanes), "float32", lanes)


def _product(spec: Multiply, a: Expr, b: Expr, lanes: int) -> Expr:
    scaled = exact.product(a * b, emit.constant(spec.ratio, "float32", lanes), lanes)
    zero_point = spec.result.zero_point
    return scaled + emit.constant(zero_point, "float32", lanes) if zero_point else scaled


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
    steps: Callable[[int, Expr, int, int], list[Expr]],
    store: Callable[[list[Expr], list[Expr], Expr, int], None],
) -> None:
    """Until every result is there: store(steps of a, steps of b, index of the result, lanes).

    steps(operand, index, vectors, lanes) reads one. What is the same in neighbouring rows is read once for some of them.
    """
    *outer, inner = sizes

    def place(row: Expr) -> tuple[Expr, Expr]:
        """Where the operands of a row begin."""
        at: list[Expr] = [0, 0]
        for size, along in zip(reversed(outer), reversed(strides[:-1]), strict=True):
            at = [index + row % size * stride for index, stride in zip(at, along, strict=True)]
            row = row // size
        return at[0], at[1]

    if isinstance(machine, Gpu):
        with threads.each(prod(sizes), machine) as index:
            at, inside = place(index // inner), index % inner
            pair = [steps(n, at[n] + inside * strides[-1][n], 1, 1) for n in range(2)]
            store(pair[0], pair[1], index, 1)
        return
    lanes = machine.lanes("float32")
    while lanes > inner:
        lanes //= 2
    blocks = -(-inner // (narrowing.TOGETHER * lanes))
    vectors = min(-(-inner // (blocks * lanes)), inner // lanes)
    width = vectors * lanes
    repeats = [n for n in range(2) if outer and not strides[-2][n]]
    rows = _divisor(outer[-1], ROWS) if len(repeats) == 1 else 1
    with emit.tasks(prod(outer) // rows, 8 * prod(sizes), machine) as task, emit.serial(-(-inner // width)) as step:
        # the last ones are moved back, so that all are whole
        first = emit.let(emit.minimum(step * width, inner - width))
        begin = place(task * rows)
        kept = {n: [emit.let(x) for x in steps(n, begin[n] + first * strides[-1][n], vectors, lanes)] for n in repeats}
        with emit.serial(rows) as row:
            down = strides[-2] if outer else (0, 0)
            places = [begin[n] + row * down[n] + first * strides[-1][n] for n in range(2)]
            pair = [kept[n] if n in kept else steps(n, places[n], vectors, lanes) for n in range(2)]
            store(pair[0], pair[1], (task * rows + row) * inner + first, lanes)


def _divisor(number: int, limit: int) -> int:
    """The largest that is not above a limit."""
    return max(n for n in range(1, limit + 1) if number % n == 0)

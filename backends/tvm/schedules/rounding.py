"""From sums to results: requantize, add, clamp, on vectors in registers. The arithmetic is that of `epilogue`, bit by bit.

Rounding adds M = 1.5 * 2^23: near M the float32 numbers are the whole numbers, so the addition itself rounds halves to even, and
the low bits of the sum are the integer. It needs |v| < 2^22; saturating first, which commutes with rounding where the ends are
whole numbers, sees to it. (The clamp between a product and this sum also keeps a compiler from fusing the two.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from graphopt.backends.tvm.machine import Processor
from graphopt.backends.tvm.schedules import emit, exact, narrowing
from graphopt.backends.tvm.schedules.emit import Expr, Flat
from graphopt.backends.tvm.schedules.epilogue import Codes, Epilogue, Sum

Table = Callable[[Expr, int], Expr]  # (codes, lanes) -> their entries
MAGIC = 1.5 * 2**23
MAGIC_BITS = 0x4B400000


def clamp(value: Expr, low: float | None, high: float | None, lanes: int) -> Expr:
    if low is not None:
        value = emit.maximum(value, emit.constant(low, "float32", lanes))
    return value if high is None else emit.minimum(value, emit.constant(high, "float32", lanes))


def whole(value: Expr, codes: Codes, lanes: int, zero_point: int) -> Expr:
    """sat(rne(value) + zero_point) as int32."""
    low, high = codes.ends
    shifted = clamp(value, low - zero_point, high - zero_point, lanes) + emit.constant(MAGIC, "float32", lanes)
    return emit.bits(shifted, emit.vector("int32", lanes)) + emit.constant(zero_point - MAGIC_BITS, "int32", lanes)


def to_codes(
    values: Sequence[Expr],
    codes: Codes,
    lanes: int,
    zero_point: int,
    machine: Processor,
    table: Table | None = None,
    *,
    bounded: bool = False,
) -> list[Expr]:
    """The same of several vectors, as codes, or as what a table has for them.

    Args:
        bounded: whether int32 holds every value.
    """
    if narrowing.packs(machine, lanes):
        found = []
        for some in batched(values, narrowing.TOGETHER):
            found += _looked_up(narrowing.packed(some, codes, lanes, zero_point, bounded=bounded), lanes, table)[
                : len(some)
            ]
        return found
    narrow = [emit.cast(whole(value, codes, lanes, zero_point), codes.dtype, lanes) for value in values]
    if table is None:
        return narrow
    if lanes == 1:
        return [table(value, 1) for value in narrow]
    found = []
    for some in batched(narrow, narrowing.TOGETHER):
        joined = emit.shuffled(
            (some + some[-1:] * narrowing.TOGETHER)[: narrowing.TOGETHER], range(narrowing.TOGETHER * lanes)
        )
        found += _looked_up(joined, lanes, table)[: len(some)]
    return found


def _looked_up(joined: Expr, lanes: int, table: Table | None) -> list[Expr]:
    """The vectors that lie behind one another in one of codes, or what the table has for them."""
    value = joined if table is None else table(joined, narrowing.TOGETHER * lanes)
    return [emit.part(value, i * lanes, lanes) for i in range(narrowing.TOGETHER)]


def added(a: Expr, b: Expr, how: Sum, lanes: int) -> Expr:
    """a, b: codes in float32; their sum in steps of its own grid."""
    ratio_a, ratio_b, offset = (
        emit.constant(number, "float32", lanes) for number in (how.ratio_a, how.ratio_b, how.offset)
    )
    return exact.fma(a, ratio_a, exact.fma(b, ratio_b, offset, lanes), lanes)


def finish(
    values: Sequence[Expr],
    residuals: Sequence[Expr] | None,
    epilogue: Epilogue,
    dtype: str,
    lanes: int,
    machine: Processor,
    table: Table | None = None,
    slopes: Sequence[tuple[Expr, Expr]] | None = None,
) -> list[Expr]:
    """Results of a layer from their float32 values (requantized: value = f32(acc) * multiplier), as `dtype`."""
    own = epilogue.result
    if own is None:
        return [
            _float(value, residual, epilogue, dtype, lanes)
            for value, residual in zip(values, residuals or [None] * len(values), strict=True)
        ]
    steps, codes, zero_point = list(values), own, own.zero_point
    if epilogue.sum is not None:
        assert residuals is not None
        steps = [_sum(value, residual, epilogue, lanes) for value, residual in zip(values, residuals, strict=True)]
        codes, zero_point = epilogue.sum.result, 0
    if epilogue.slopes is not None:
        assert slopes is not None
        steps = [_sloped(step, *pair, codes, lanes, zero_point) for step, pair in zip(steps, slopes, strict=True)]
        codes, zero_point = epilogue.slopes, epilogue.slopes.zero_point
    return to_codes(steps, codes, lanes, zero_point, machine, table)


def _sum(value: Expr, residual: Expr, epilogue: Epilogue, lanes: int) -> Expr:
    """A layer's own codes and others, added."""
    own, how = epilogue.result, epilogue.sum
    assert own is not None
    assert how is not None
    other = emit.cast(emit.cast(residual, "int32", lanes), "float32", lanes)
    low, high = (end - own.zero_point for end in own.ends)
    rounded = exact.total(clamp(value, low, high, lanes), emit.constant(MAGIC, "float32", lanes), lanes)
    mine = rounded - emit.constant(MAGIC - own.zero_point, "float32", lanes)  # whole numbers: exact
    return added(other, mine, how, lanes) if epilogue.second else added(mine, other, how, lanes)


def _sloped(step: Expr, positive: Expr, negative: Expr, codes: Codes, lanes: int, zero_point: int) -> Expr:
    """rne(step) + zero_point as a code, times one of two slopes."""
    code = whole(step, codes, lanes, zero_point) - emit.constant(codes.zero_point, "int32", lanes)
    value = emit.cast(code, "float32", lanes)
    value = value if lanes == 1 else emit.let(value)
    return value * emit.chosen(value < emit.constant(0, "float32", lanes), negative, positive)


def slopes(flat: Mapping[str, Flat], channel: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Those above and below zero, of some channels."""
    return flat["positive"].load(channel, lanes), flat["negative"].load(channel, lanes)


def _float(value: Expr, residual: Expr | None, epilogue: Epilogue, dtype: str, lanes: int) -> Expr:
    if epilogue.rounded is not None:
        value = emit.cast(emit.cast(value, epilogue.rounded, lanes), "float32", lanes)
    if residual is not None:
        value = value + emit.cast(residual, "float32", lanes)
    return emit.cast(clamp(value, *epilogue.clamp, lanes), dtype, lanes)


def batched(values: Sequence[Expr], count: int) -> Iterator[list[Expr]]:
    for start in range(0, len(values), count):
        yield list(values[start : start + count])

"""From sums to results: requantize, add, clamp, on vectors in registers. The arithmetic is that of `epilogue`, bit by bit.

Rounding adds M = 1.5 * 2^23: near M the float32 numbers are the whole numbers, so the addition itself rounds halves to even, and
the low bits of the sum are the integer. It needs |v| < 2^22; saturating first, which commutes with rounding where the ends are
whole numbers, sees to it. (The clamp between a product and this sum also keeps a compiler from fusing the two.)
"""

from __future__ import annotations

from graphopt.backends.tvm.schedules import emit, exact
from graphopt.backends.tvm.schedules.emit import Expr
from graphopt.backends.tvm.schedules.epilogue import Codes, Epilogue, Sum

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


def to_codes(value: Expr, codes: Codes, lanes: int, zero_point: int) -> Expr:
    """The same as codes."""
    return emit.cast(whole(value, codes, lanes, zero_point), codes.dtype, lanes)


def add_codes(a: Expr, b: Expr, how: Sum, lanes: int) -> Expr:
    """a, b: codes in float32."""
    ratio_a, ratio_b, offset = (
        emit.constant(number, "float32", lanes) for number in (how.ratio_a, how.ratio_b, how.offset)
    )
    inner = exact.fma(b, ratio_b, offset, lanes)
    return to_codes(exact.fma(a, ratio_a, inner, lanes), how.result, lanes, zero_point=0)


def finish(value: Expr, residual: Expr | None, epilogue: Epilogue, dtype: str, lanes: int) -> Expr:
    """The result of a layer from its float32 value (requantized: value = f32(acc) * multiplier), as `dtype`."""
    if epilogue.sum is not None:
        assert epilogue.result is not None
        assert residual is not None
        other = emit.cast(emit.cast(residual, "int32", lanes), "float32", lanes)
        own = emit.cast(whole(value, epilogue.result, lanes, epilogue.result.zero_point), "float32", lanes)
        first, second = (other, own) if epilogue.second else (own, other)
        return add_codes(first, second, epilogue.sum, lanes)
    if epilogue.result is not None:
        return to_codes(value, epilogue.result, lanes, epilogue.result.zero_point)
    if epilogue.rounded is not None:
        value = emit.cast(emit.cast(value, epilogue.rounded, lanes), "float32", lanes)
    if residual is not None:
        value = value + emit.cast(residual, "float32", lanes)
    return emit.cast(clamp(value, *epilogue.clamp, lanes), dtype, lanes)

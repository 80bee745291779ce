"""Operators on two values, broadcast, in the type that torch computes in; comparisons and choices."""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value

from graphopt.backends.onnxruntime.emit.elementwise import maximum, truncated
from graphopt.backends.onnxruntime.emit.rule import Rule, common_type, computed_in, result_type, widened
from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.ir.arguments import Arguments
from graphopt.ir.ops import aten


def _operands(w: Writer, a: Arguments, dtype: torch.dtype) -> tuple[Value, Value]:
    first, second = (a[name] for name in list(a)[:2])
    return w.read(first, dtype), w.read(second, dtype)


def arithmetic(w: Writer, kind: str, x: Value, y: Value, dtype: torch.dtype) -> Value:
    """Integers of few bits have no kernels; they wrap around in a wider type as in their own."""
    return computed_in(w, widened(dtype), dtype, lambda x, y: w.op(kind, x, y), x, y)


def _sum(kind: str, *, swapped: bool = False) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype, alpha = result_type(a), a.get("alpha", 1)
        x, y = _operands(w, a, dtype)
        if dtype == torch.bool:
            return w.op("Or", x, y)
        x, y = (y, x) if swapped else (x, y)
        if alpha in (1, None):
            return arithmetic(w, kind, x, y, dtype)
        return arithmetic(w, kind, x, arithmetic(w, "Mul", y, w.read(alpha, dtype), dtype), dtype)

    return rule


def _product(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    x, y = _operands(w, a, dtype)
    return w.op("And", x, y) if dtype == torch.bool else arithmetic(w, "Mul", x, y, dtype)


def _quotient(w: Writer, a: Arguments) -> Value:
    """Exact, or rounded: down, or towards zero."""
    dtype, mode = result_type(a), a.get("rounding_mode")
    if a.target is aten.floor_divide.default:
        mode = "floor"
    x, y = _operands(w, a, dtype)
    if dtype.is_floating_point:
        value = w.op("Div", x, y)
        return value if mode is None else w.op("Floor", value) if mode == "floor" else truncated(w, value, dtype)
    if mode == "floor":
        x = arithmetic(w, "Sub", x, remainder(w, x, y, dtype), dtype)
    return arithmetic(w, "Div", x, y, dtype)


def remainder(w: Writer, x: Value, y: Value, dtype: torch.dtype) -> Value:
    """With the sign of the divisor."""
    if dtype.is_floating_point:
        return w.op("Sub", x, w.op("Mul", y, w.op("Floor", w.op("Div", x, y))))
    return w.op("Mod", x, y)


def _remainder(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    return remainder(w, *_operands(w, a, dtype), dtype)


def _fmod(w: Writer, a: Arguments) -> Value:
    return w.op("Mod", *_operands(w, a, result_type(a)), fmod=1)


def _power(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    inner = widened(dtype)
    return w.cast(w.op("Pow", *_operands(w, a, inner)), inner, dtype)


def _extreme(kind: str) -> Rule:
    return lambda w, a: maximum(w, *_operands(w, a, result_type(a)), result_type(a), kind)


def _comparison(kind: str, *, negated: bool = False) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        first, second = (a[name] for name in list(a)[:2])
        dtype = common_type(first, second)
        dtype = dtype if dtype == torch.bool and kind == "Equal" else widened(dtype)
        value = w.op(kind, w.read(first, dtype), w.read(second, dtype))
        return w.op("Not", value) if negated else value

    return rule


def _logical(kind: str) -> Rule:
    return lambda w, a: w.op(kind, *_operands(w, a, torch.bool))


def _bitwise(kind: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        return w.op(kind if dtype == torch.bool else f"Bitwise{kind}", *_operands(w, a, dtype))

    return rule


def _where(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    return choose(w, w.read(a["condition"], torch.bool), w.read(a["self"], dtype), w.read(a["other"], dtype), dtype)


def choose(w: Writer, condition: Value, yes: Value, no: Value, dtype: torch.dtype) -> Value:
    """ONNX Runtime chooses between floats, bytes, and integers of 32 and 64 bits."""
    inner = dtype if dtype == torch.uint8 else widened(dtype)
    return computed_in(w, inner, dtype, lambda *values: w.op("Where", condition, *values), yes, no)


def _masked_fill(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    return choose(w, w.read(a["mask"]), w.read(a["value"], dtype), w.read(a["self"], dtype), dtype)


def _both(operator: Any, rule: Rule) -> dict[Any, Rule]:
    return {getattr(operator, overload): rule for overload in ("Tensor", "Scalar") if hasattr(operator, overload)}


PAIRS: dict[Any, Rule] = {
    **_both(aten.add, _sum("Add")),
    **_both(aten.sub, _sum("Sub")),
    **_both(aten.rsub, _sum("Sub", swapped=True)),
    **_both(aten.mul, _product),
    **_both(aten.div, _quotient),
    aten.div.Tensor_mode: _quotient,
    aten.div.Scalar_mode: _quotient,
    aten.floor_divide.default: _quotient,
    **_both(aten.remainder, _remainder),
    **_both(aten.fmod, _fmod),
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.maximum.default: _extreme("Max"),
    aten.minimum.default: _extreme("Min"),
    **_both(aten.eq, _comparison("Equal")),
    **_both(aten.ne, _comparison("Equal", negated=True)),
    **_both(aten.gt, _comparison("Greater")),
    **_both(aten.ge, _comparison("GreaterOrEqual")),
    **_both(aten.lt, _comparison("Less")),
    **_both(aten.le, _comparison("LessOrEqual")),
    aten.logical_and.default: _logical("And"),
    aten.logical_or.default: _logical("Or"),
    aten.logical_xor.default: _logical("Xor"),
    **_both(aten.bitwise_and, _bitwise("And")),
    **_both(aten.bitwise_or, _bitwise("Or")),
    **_both(aten.bitwise_xor, _bitwise("Xor")),
    **_both(aten.__and__, _bitwise("And")),
    **_both(aten.__or__, _bitwise("Or")),
    **_both(aten.__xor__, _bitwise("Xor")),
    **dict.fromkeys([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar], _where),
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
}

"""Operators of two values, or of a value and a number, element by element: repeated, and in the type torch promotes them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import Node
from tvm import relax, te, tirx

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.elementwise import builder, library_call
from graphopt.backends.tvm.operators.rule import Rule, aligned, cast, is_integer, result_type, scalar
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

op = relax.op


def operands(program: Program, given: list[Any], dtype: torch.dtype, out: tuple[int, ...]) -> tuple[list[Any], Any]:
    """Expressions of values and numbers in one type and order; and that order."""
    values = [program.value(g) for g in given if isinstance(g, Node)]
    lined = iter(aligned(program, [cast(program, v, dtype) for v in values], len(out)))
    found = [next(lined) if isinstance(g, Node) else None for g in given]
    order = next(v for v in found if v is not None).order
    return [scalar(g, dtype) if v is None else v.expr for g, v in zip(given, found, strict=True)], order


def common_type(*given: Any) -> torch.dtype:
    """Of values and numbers, as torch promotes them."""
    fakes: list[Any] = [
        torch.empty(shape(g), dtype=result_type(g), device="meta") if isinstance(g, Node) else g for g in given
    ]
    dtype = fakes[0].dtype if isinstance(fakes[0], torch.Tensor) else torch.result_type(fakes[0], fakes[1])
    for fake in fakes[1:]:
        dtype = torch.result_type(fakes[0], fake)
    return dtype


def _binary(function: Callable[[Any, Any], Any], *, asks: bool = False, logical: bool = False) -> Rule:
    """`asks`: the result is bool, of operands in their common type; `logical`: of operands that are bool themselves."""

    def rule(program: Program, a: Arguments) -> Value:
        left, right = _pair(a)
        dtype = torch.bool if logical else common_type(left, right) if asks else result_type(a.node)
        if dtype == torch.bool and asks:
            dtype = torch.int8  # LLVM does not compare bits
        (x, y), order = operands(program, [left, right], dtype, shape(a.node))
        if "alpha" in a and (factor := a["alpha"]) != 1:
            x, y = (
                (op.multiply(x, scalar(factor, dtype)), y)
                if "rsub" in str(a.target)
                else (x, op.multiply(y, scalar(factor, dtype)))
            )
        return program.emit(function(x, y), shape(a.node), order)

    return rule


def _pair(a: Arguments) -> tuple[Any, Any]:
    if "exponent" in a:
        return a["self"], a["exponent"]
    return a["self" if "self" in a else "input"], a["other"]


def _exact(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two elements, of TVM's tensor expressions, as an operator that repeats sizes of 1."""

    def compute(x: Any, y: Any) -> Any:
        rank = max(len(x.shape), len(y.shape))
        sizes = [_size(x, d, rank) if _size(x, d, rank) != 1 else _size(y, d, rank) for d in range(rank)]

        def at(t: Any, index: tuple[Any, ...]) -> Any:
            own = index[rank - len(t.shape) :]
            return t[tuple(0 if int(n) == 1 else i for n, i in zip(t.shape, own, strict=True))]

        return te.compute(sizes, lambda *i: function(at(x, i), at(y, i)), "elements")

    return lambda x, y: builder().call_te(compute, x, y)


def _size(x: Any, dim: int, rank: int) -> int:
    dim -= rank - len(x.shape)
    return 1 if dim < 0 else int(x.shape[dim])


def _fmod(x: Any, y: Any) -> Any:
    """By the C library, which is exact where x / y is not."""
    if "int" in str(x.dtype):
        return tirx.truncmod(x, y)
    return library_call("fmod", x, y)


def _remainder(x: Any, y: Any) -> Any:
    if "int" in str(x.dtype):
        rest = tirx.truncmod(x, y)
        return tirx.Select(_against(rest, x, y), rest + y, rest)
    rest, zero = _fmod(x, y), tirx.const(0, x.dtype)
    return tirx.if_then_else(tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero)), rest + y, rest)


def _against(rest: Any, x: Any, y: Any) -> Any:
    """Whether the rest of x by y has the other sign than y. (TVM's `floormod` and `floordiv` ask that of vectors, for which its
    simplifier cannot write what it knows: "IntImm can only take scalar".)"""
    zero = tirx.const(0, x.dtype)
    return tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero))


def _rounded_quotient(mode: str) -> Callable[[Any, Any], Any]:
    def quotient(x: Any, y: Any) -> Any:
        if "int" in str(x.dtype):
            whole = tirx.truncdiv(x, y)
            if mode == "trunc":
                return whole
            return tirx.Select(_against(tirx.truncmod(x, y), x, y), whole - tirx.const(1, x.dtype), whole)
        if mode == "trunc":
            return tirx.trunc(x / y)
        return tirx.floor(
            (x - _remainder(x, y)) / y + tirx.const(0.5, x.dtype)
        )  # the quotient is whole, up to rounding

    return quotient


def _divide(program: Program, a: Arguments) -> Value:
    mode = a.get("rounding_mode")
    function = op.divide if mode is None else _exact(_rounded_quotient(mode))
    return _binary(function)(program, a)  # type: ignore[return-value]


def _power(program: Program, a: Arguments) -> Value:
    base, exponent = _pair(a)
    dtype = result_type(a.node)
    whole = isinstance(exponent, (int, float)) and float(exponent).is_integer() and 0 <= exponent <= 8
    if is_integer(dtype) and not whole:
        raise InputError(
            f"{program.graph.site(a.node)}: TVM raises {dtype_name(dtype)} only to whole numbers from 0 to 8, not to "
            f"{exponent} (node {a.node.name}); convert to float first"
        )
    if whole and isinstance(base, Node):
        (x,), order = operands(program, [base], dtype, shape(a.node))
        product = op.ones_like(x) if exponent == 0 else x
        for _ in range(int(exponent) - 1):
            product = op.multiply(product, x)
        return program.emit(product, shape(a.node), order)
    if exponent in (0.5, -0.5) and isinstance(base, Node):
        (x,), order = operands(program, [base], dtype, shape(a.node))
        return program.emit((op.sqrt if exponent > 0 else op.rsqrt)(x), shape(a.node), order)
    (x, y), order = operands(program, [base, exponent], dtype, shape(a.node))
    return program.emit(op.power(x, y), shape(a.node), order)


def _where(program: Program, a: Arguments) -> Value:
    dtype, out = result_type(a.node), shape(a.node)
    tests, *choices = aligned(
        program,
        [
            cast(program, program.value(a["condition"]), torch.bool),
            *(cast(program, program.value(a[k]), dtype) for k in ("self", "other")),
        ],
        len(out),
    )
    return program.emit(op.where(tests.expr, *(c.expr for c in choices)), out, tests.order)


def _bits(logical: Callable[[Any, Any], Any], bitwise: Callable[[Any, Any], Any]) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        return _binary(logical if result_type(a.node) == torch.bool else bitwise)(program, a)  # type: ignore[return-value]

    return rule


def _both(packet: Any, rule: Rule) -> dict[Any, Rule]:
    """For a tensor and for a number as the other operand."""
    return dict.fromkeys([getattr(packet, o) for o in ("Tensor", "Scalar") if hasattr(packet, o)], rule)


PAIRS: dict[Any, Rule] = {
    **_both(aten.add, _binary(op.add)),
    **_both(aten.sub, _binary(op.subtract)),
    **_both(aten.rsub, _binary(lambda x, y: op.subtract(y, x))),
    **_both(aten.mul, _binary(op.multiply)),
    **dict.fromkeys([aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode], _divide),
    **_both(aten.fmod, _binary(_exact(_fmod))),
    **_both(aten.remainder, _binary(_exact(_remainder))),
    **dict.fromkeys([aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar], _power),
    aten.maximum.default: _binary(op.maximum),
    aten.minimum.default: _binary(op.minimum),
    aten.atan2.default: _binary(op.atan2),
    **_both(aten.eq, _binary(op.equal, asks=True)),
    **_both(aten.ne, _binary(op.not_equal, asks=True)),
    **_both(aten.lt, _binary(op.less, asks=True)),
    **_both(aten.le, _binary(op.less_equal, asks=True)),
    **_both(aten.gt, _binary(op.greater, asks=True)),
    **_both(aten.ge, _binary(op.greater_equal, asks=True)),
    aten.logical_and.default: _binary(op.logical_and, logical=True),
    aten.logical_or.default: _binary(op.logical_or, logical=True),
    aten.logical_xor.default: _binary(op.logical_xor, logical=True),
    **_both(aten.bitwise_and, _bits(op.logical_and, op.bitwise_and)),
    **_both(aten.bitwise_or, _bits(op.logical_or, op.bitwise_or)),
    **_both(aten.bitwise_xor, _bits(op.logical_xor, op.bitwise_xor)),
    aten.where.self: _where,
}  # fmt: skip

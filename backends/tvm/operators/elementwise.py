"""Operators that treat every element alike: in the order of dimensions they find, and in the type that torch computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import relax, te, tirx

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.rule import (
    Rule,
    cast,
    dtype_of,
    result_type,
    scalar,
)  # fmt: skip
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.ops import aten
from graphopt.lowering.to_signs import TO_SIGNS
from graphopt.utils.errors import InputError

op = relax.op
Function = Callable[[Any], Any]


def builder() -> Any:
    """That of the function under construction."""
    builders: Any = relax.BlockBuilder
    return builders.current()


def intrinsic(function: Callable[[Any], Any]) -> Function:
    """A function of one element, of TVM's tensor expressions, as an operator."""

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *i: function(x[i]), "element")

    return lambda x: builder().call_te(compute, x)


def library(name: str) -> Function:
    """A function of the C library, for which TVM has no instruction, or one that rounds worse."""
    return intrinsic(lambda x: library_call(name, x))


def library_call(name: str, *values: Any) -> Any:
    dtype = str(values[0].dtype)
    return tirx.call_pure_extern(dtype, {"float32": f"{name}f", "float64": name}[dtype], *values)


# in the type of the result
UNARY: dict[Any, Function] = {
    aten.abs.default: op.abs,
    aten.neg.default: op.negative, aten.sign.default: op.sign,
    aten.relu.default: op.nn.relu, aten.sigmoid.default: op.sigmoid, aten.tanh.default: op.tanh,
    aten.silu.default: op.nn.silu,
    aten.exp.default: op.exp, aten.log.default: op.log, aten.log1p.default: library("log1p"),
    aten.expm1.default: library("expm1"),
    aten.log2.default: intrinsic(tirx.log2), aten.log10.default: intrinsic(tirx.log10),
    aten.exp2.default: intrinsic(tirx.exp2),
    aten.sqrt.default: op.sqrt, aten.rsqrt.default: op.rsqrt, aten.erf.default: op.erf,
    aten.sin.default: op.sin, aten.cos.default: op.cos, aten.tan.default: library("tan"),
    aten.asin.default: library("asin"),
    aten.acos.default: library("acos"), aten.atan.default: library("atan"), aten.sinh.default: library("sinh"),
    aten.cosh.default: library("cosh"),
    aten.asinh.default: library("asinh"), aten.acosh.default: library("acosh"), aten.atanh.default: library("atanh"),
    aten.bitwise_not.default: op.bitwise_not,
}  # fmt: skip
ROUND: dict[Any, Function] = {  # integers stay what they are
    aten.floor.default: op.floor, aten.ceil.default: op.ceil, aten.trunc.default: op.trunc,
    aten.round.default: intrinsic(tirx.nearbyint),  # halves to even
}  # fmt: skip
ASK: dict[Any, Function] = {  # bool of the input's own type
    aten.isnan.default: op.isnan, aten.isinf.default: op.isinf, aten.isfinite.default: op.isfinite,
}  # fmt: skip


def _unary(function: Function) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        x = cast(program, program.value(a["self"]), result_type(a.node))
        if function is op.bitwise_not and dtype_of(x) == "bool":
            return program.emit(op.logical_not(x.expr), x.shape, x.order)
        return program.emit(function(x.expr), x.shape, x.order)

    return rule


def _round(function: Function) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        x = program.value(a["self"])
        return program.emit(function(x.expr), x.shape, x.order) if result_type(a.node).is_floating_point else x

    return rule


def _ask(function: Function) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        x = program.value(a["self"])
        if not result_type(a["self"]).is_floating_point:
            x = cast(program, x, torch.float32)
        return program.emit(function(x.expr), x.shape, x.order)

    return rule


def _logical_not(program: Program, a: Arguments) -> Value:
    x = cast(program, program.value(a["self"]), torch.bool)
    return program.emit(op.logical_not(x.expr), x.shape, x.order)


def _reciprocal(program: Program, a: Arguments) -> Value:
    x = cast(program, program.value(a["self"]), result_type(a.node))
    return program.emit(op.divide(scalar(1, result_type(a.node)), x.expr), x.shape, x.order)


def _gelu(program: Program, a: Arguments) -> Value:
    x = program.value(a["self"])
    function = {"none": op.nn.gelu, "tanh": op.nn.gelu_tanh}[a["approximate"]]
    return program.emit(function(x.expr), x.shape, x.order)


def _leaky_relu(program: Program, a: Arguments) -> Value:
    x = program.value(a["self"])
    return program.emit(op.nn.leakyrelu(x.expr, float(a["negative_slope"])), x.shape, x.order)


def _clamp(program: Program, a: Arguments) -> Value:
    """Between numbers, of which each may be missing."""
    dtype = result_type(a.node)
    x = cast(program, program.value(a["self"]), dtype)
    if a.target is aten.relu6.default:
        low, high = 0, 6
    else:
        low, high = (a.get(f"{end}_val", a.get(end)) for end in ("min", "max"))
    expr = x.expr
    if low is not None:
        expr = op.maximum(expr, scalar(low, dtype))
    if high is not None:
        expr = op.minimum(expr, scalar(high, dtype))
    return program.emit(expr, x.shape, x.order)


def _hard(scaled: bool) -> Rule:
    """relu6(x + 3) / 6, times x where `scaled`."""

    def rule(program: Program, a: Arguments) -> Value:
        dtype = result_type(a.node)
        x = program.value(a["self"])
        shifted = op.add(x.expr, scalar(3, dtype))
        gate = op.minimum(op.maximum(shifted, scalar(0, dtype)), scalar(6, dtype))
        product = op.multiply(x.expr, gate) if scaled else gate
        return program.emit(op.divide(product, scalar(6, dtype)), x.shape, x.order)

    return rule


def _identity(program: Program, a: Arguments) -> Value:
    a.ignore("memory_format", "p", "layout", "device", "pin_memory", "non_blocking")
    if a.get("train"):
        raise InputError(
            f"{program.graph.site(a.node)}: dropout is in training mode, which is random; call eval() first"
        )
    return program.value(a["input"] if "input" in a else a["self"])


def _convert(program: Program, a: Arguments) -> Value:
    a.ignore("memory_format", "non_blocking", "copy")
    return cast(program, program.value(a["self" if "self" in a else "a"]), a["dtype"])


def _to_signs(program: Program, a: Arguments) -> Value:
    dtype = result_type(a.node)
    x = program.value(a["x"])
    threshold, low, high = (float(a[name]) for name in ("threshold", "low", "high"))
    below = op.where(op.less_equal(x.expr, scalar(-threshold, dtype)), scalar(low, dtype), scalar(0, dtype))
    return program.emit(
        op.where(op.greater_equal(x.expr, scalar(threshold, dtype)), scalar(high, dtype), below), x.shape, x.order
    )


ELEMENTWISE: dict[Any, Rule] = {
    TO_SIGNS: _to_signs,
    **{target: _unary(function) for target, function in UNARY.items()},
    **{target: _round(function) for target, function in ROUND.items()},
    **{target: _ask(function) for target, function in ASK.items()},
    aten.logical_not.default: _logical_not,
    aten.reciprocal.default: _reciprocal,
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    **dict.fromkeys([aten.relu6.default, aten.hardtanh.default, aten.clamp.default], _clamp),
    **dict.fromkeys([aten.clamp_min.default, aten.clamp_max.default], _clamp),
    aten.hardsigmoid.default: _hard(False),
    aten.hardswish.default: _hard(True),
    **dict.fromkeys(
        [aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.clone.default,
         aten.contiguous.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default], _identity,
    ),
    aten.to.dtype: _convert,
    torch.ops.prims.convert_element_type.default: _convert,
}  # fmt: skip

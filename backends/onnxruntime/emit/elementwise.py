"""Operators that treat every element alike, in the type that torch computes in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx_ir import Value

from graphopt.backends.onnxruntime.emit.rule import (
    Rule,
    computed_in,
    ignore_memory,
    is_integer,
    rank,
    result_type,
    widened,
)
from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.lowering.to_signs import TO_SIGNS
from graphopt.utils.errors import InputError

Function = Callable[[Writer, Value, torch.dtype], Value]

SAME = {  # one operator of ONNX
    aten.abs.default: "Abs", aten.neg.default: "Neg", aten.sign.default: "Sign", aten.relu.default: "Relu",
    aten.sigmoid.default: "Sigmoid", aten.tanh.default: "Tanh", aten.exp.default: "Exp", aten.log.default: "Log",
    aten.sqrt.default: "Sqrt", aten.erf.default: "Erf", aten.sin.default: "Sin", aten.cos.default: "Cos",
    aten.tan.default: "Tan", aten.asin.default: "Asin", aten.acos.default: "Acos", aten.atan.default: "Atan",
    aten.sinh.default: "Sinh", aten.cosh.default: "Cosh", aten.asinh.default: "Asinh", aten.acosh.default: "Acosh",
    aten.atanh.default: "Atanh", aten.reciprocal.default: "Reciprocal", aten.mish.default: "Mish", aten.selu.default: "Selu",
    aten.hardswish.default: "HardSwish",
}  # fmt: skip
# Of these, ONNX Runtime has kernels for 32- and 64-bit integers as well; of no other, and none for fewer bits.
OF_INTEGERS = {"Abs", "Neg", "Sign"}


def _same(kind: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        return through(w, w.read(a["self"], dtype), dtype, lambda x: w.op(kind, x), OF_INTEGERS, kind)

    return rule


def through(
    w: Writer, x: Value, dtype: torch.dtype, function: Callable[[Value], Value], wide: set[str], kind: str
) -> Value:
    """Apply a function to integers in a type that its kernel has, and come back."""
    if dtype.is_floating_point or (kind in wide and dtype in (torch.int32, torch.int64)):
        return function(x)
    inner = torch.int64 if kind in wide else torch.float64 if dtype == torch.int64 else torch.float32
    return computed_in(w, inner, dtype, function, x)


def _rounded(kind: str) -> Rule:
    """Integers stay what they are."""

    def rule(w: Writer, a: Arguments) -> Value:
        x = w.read(a["self"])
        return w.op(kind, x) if result_type(a).is_floating_point else x

    return rule


def _relu(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    x = w.read(a["self"], dtype)
    return w.op("Relu", x) if dtype.is_floating_point else maximum(w, x, w.constant(0, dtype), dtype)


def maximum(w: Writer, x: Value, y: Value, dtype: torch.dtype, kind: str = "Max") -> Value:
    """Of two values of one type; for few bits there are no kernels."""
    return computed_in(w, widened(dtype), dtype, lambda x, y: w.op(kind, x, y), x, y)


def _of(function: Function) -> Rule:
    """A rule from a function of the value in the result's type, and that type."""
    return lambda w, a: function(w, w.read(a["self"], result_type(a)), result_type(a))


def _rsqrt(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Reciprocal", w.op("Sqrt", x))


def _logarithm(base: float) -> Function:
    return lambda w, x, dtype: w.op("Div", w.op("Log", x), w.constant(math.log(base), dtype))


def _log1p(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Log", w.op("Add", x, w.constant(1, dtype)))


def _expm1(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Sub", w.op("Exp", x), w.constant(1, dtype))


def _exp2(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Pow", w.constant(2, dtype), x)


def truncated(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    """Towards zero."""
    return w.op("Mul", w.op("Sign", x), w.op("Floor", w.op("Abs", x))) if dtype.is_floating_point else x


def _fraction(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Sub", x, truncated(w, x, dtype))


def _square(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Mul", x, x)


def _silu(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Mul", x, w.op("Sigmoid", x))


def _log_sigmoid(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("Neg", w.op("Softplus", w.op("Neg", x)))


def _hard_sigmoid(w: Writer, x: Value, dtype: torch.dtype) -> Value:
    return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _round_to(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    ten = w.constant(10.0 ** a["decimals"], dtype)
    return w.op("Div", w.op("Round", w.op("Mul", w.read(a["self"], dtype), ten)), ten)


def _gelu(w: Writer, a: Arguments) -> Value:
    return w.op("Gelu", w.read(a["self"]), approximate=a["approximate"])


def _leaky_relu(w: Writer, a: Arguments) -> Value:
    return w.op("LeakyRelu", w.read(a["self"]), alpha=float(a["negative_slope"]))


def _prelu(w: Writer, a: Arguments) -> Value:
    """One slope, or one for each channel. ONNX Runtime's own kernel takes ten times as long as these operators do together."""
    source, slope = a["self"], a["weight"]
    behind = max(rank(source) - 2, 0)
    each = rank(slope) == 1 and shape(slope)[0] != 1 and behind
    x, known = w.read(source), w.constant_value(slope)
    slopes = w.shaped(slope, [-1, *[1] * behind]) if each else w.read(slope)
    if known is None:
        return w.op("PRelu", x, slopes)
    if bool(((known > 0) & (known <= 1)).all()):
        return w.op("Max", x, w.op("Mul", x, slopes))
    zero = w.constant(0, result_type(a))
    return w.op("Add", w.op("Max", x, zero), w.op("Mul", w.op("Min", x, zero), slopes))


def _elu(w: Writer, a: Arguments) -> Value:
    """scale * (x, or alpha * (exp(input_scale * x) - 1) below zero)."""
    dtype, source = result_type(a), a["self"]
    alpha, scale, inner = float(a["alpha"]), float(a["scale"]), float(a["input_scale"])
    x = w.read(source)
    if inner == 1:
        value = w.op("Elu", x, alpha=alpha)
    else:
        low = w.op("Elu", w.op("Mul", x, w.constant(inner, dtype)), alpha=alpha)
        value = w.op("Where", w.op("Greater", x, w.constant(0, dtype)), x, low)
    return value if scale == 1 else w.op("Mul", value, w.constant(scale, dtype))


def _celu(w: Writer, a: Arguments) -> Value:
    """Celu is of float32 alone: a elu(x / a) in other types."""
    x, alpha, dtype = w.read(a["self"]), float(a["alpha"]), type_of(a["self"])
    if dtype == torch.float32:
        return w.op("Celu", x, alpha=alpha)
    scale = w.constant(alpha, dtype)
    return w.op("Mul", w.op("Elu", w.op("Div", x, scale), alpha=1.0), scale)


def _softplus(w: Writer, a: Arguments) -> Value:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    dtype, beta = result_type(a), a["beta"]
    x = w.read(a["self"])
    scaled = x if beta == 1 else w.op("Mul", x, w.constant(beta, dtype))
    value = w.op("Softplus", scaled)
    value = value if beta == 1 else w.op("Div", value, w.constant(beta, dtype))
    return w.op("Where", w.op("Greater", scaled, w.constant(a["threshold"], dtype)), x, value)


def _softshrink(w: Writer, a: Arguments) -> Value:
    return w.op("Shrink", w.read(a["self"]), lambd=float(a["lambd"]), bias=float(a["lambd"]))


def _hardshrink(w: Writer, a: Arguments) -> Value:
    return w.op("Shrink", w.read(a["self"]), lambd=float(a["lambd"]), bias=0.0)


def _threshold(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    x = w.read(a["self"])
    above = w.op("Greater", x, w.constant(a["threshold"], dtype))
    return w.op("Where", above, x, w.constant(a["value"], dtype))


def _logit(w: Writer, a: Arguments) -> Value:
    dtype, eps = result_type(a), a["eps"]
    x = w.read(a["self"], dtype)
    if eps is not None:
        x = w.op("Clip", x, w.constant(eps, dtype), w.constant(1 - eps, dtype))
    return w.op("Log", w.op("Div", x, w.op("Sub", w.constant(1, dtype), x)))


def _glu(w: Writer, a: Arguments) -> Value:
    source = a["self"]
    dim = a["dim"] % rank(source)
    half = shape(source)[dim] // 2
    x, axis = w.read(source), w.integers([dim])
    first = w.op("Slice", x, w.integers([0]), w.sizes([half]), axis)
    second = w.op("Slice", x, w.sizes([half]), w.sizes([shape(source)[dim]]), axis)
    return w.op("Mul", first, w.op("Sigmoid", second))


def _nan_to_num(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    x = w.read(a["self"])
    if not dtype.is_floating_point:
        a.ignore("nan", "posinf", "neginf")
        return x
    ends = torch.finfo(dtype)
    high, low = (
        given if given is not None else end for given, end in ((a["posinf"], ends.max), (a["neginf"], ends.min))
    )
    value = w.op("Where", w.op("IsNaN", x), w.constant(a["nan"] or 0.0, dtype), x)
    value = w.op("Where", w.op("Equal", x, w.constant(math.inf, dtype)), w.constant(high, dtype), value)
    return w.op("Where", w.op("Equal", x, w.constant(-math.inf, dtype)), w.constant(low, dtype), value)


def _clamp(w: Writer, a: Arguments) -> Value:
    """Between numbers, of which each may be missing."""
    dtype = result_type(a)
    x = w.read(a["self"], dtype)
    ends = [0, 6] if a.target is aten.relu6.default else [a.get(f"{end}_val", a.get(end)) for end in ("min", "max")]
    inner = widened(dtype)
    low, high = (None if end is None else w.constant(end, inner) for end in ends)
    return computed_in(w, inner, dtype, lambda x: w.op("Clip", x, low, *([] if high is None else [high])), x)


def _clamp_tensors(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    value = w.read(a["self"], dtype)
    for end, kind in (("min", "Max"), ("max", "Min")):
        if a.get(end) is not None:
            value = maximum(w, value, w.read(a.get(end), dtype), dtype, kind)
    return value


def _identity(w: Writer, a: Arguments) -> Value:
    a.ignore("p")
    ignore_memory(a)
    if a.get("train"):
        raise InputError(f"{w.graph.site(a.node)}: dropout is in training mode, which is random; call eval() first")
    return w.read(a["input"] if "input" in a else a["self"])


def _convert(w: Writer, a: Arguments) -> Value:
    ignore_memory(a)
    return w.read(a["self"], a["dtype"])


def _ask(kind: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        source = a["self"]
        if is_integer(type_of(source)) or type_of(source) == torch.bool:
            return w.op("Not", w.op("Equal", w.read(source), w.read(source)))
        return w.op(kind, w.read(source))

    return rule


def _is_finite(w: Writer, a: Arguments) -> Value:
    x = w.read(a["self"])
    return w.op("Not", w.op("Or", w.op("IsInf", x), w.op("IsNaN", x)))


def _logical_not(w: Writer, a: Arguments) -> Value:
    return w.op("Not", w.read(a["self"], torch.bool))


def _bitwise_not(w: Writer, a: Arguments) -> Value:
    return w.op("Not" if result_type(a) == torch.bool else "BitwiseNot", w.read(a["self"]))


def _to_signs(w: Writer, a: Arguments) -> Value:
    x, dtype = w.read(a["x"]), result_type(a)
    threshold, low, high = (float(a[name]) for name in ("threshold", "low", "high"))
    negative = w.op("LessOrEqual", x, w.constant(-threshold, dtype))
    below = w.op("Where", negative, w.constant(low, dtype), w.constant(0, dtype))
    return w.op("Where", w.op("GreaterOrEqual", x, w.constant(threshold, dtype)), w.constant(high, dtype), below)


ELEMENTWISE: dict[Any, Rule] = {
    TO_SIGNS: _to_signs,
    **{target: _same(kind) for target, kind in SAME.items()},
    aten.floor.default: _rounded("Floor"),
    aten.ceil.default: _rounded("Ceil"),
    aten.round.default: _rounded("Round"),
    aten.relu.default: _relu,
    aten.rsqrt.default: _of(_rsqrt),
    aten.log2.default: _of(_logarithm(2)),
    aten.log10.default: _of(_logarithm(10)),
    aten.log1p.default: _of(_log1p),
    aten.expm1.default: _of(_expm1),
    aten.exp2.default: _of(_exp2),
    aten.trunc.default: _of(truncated),
    aten.frac.default: _of(_fraction),
    aten.square.default: _of(_square),
    aten.silu.default: _of(_silu),
    aten.log_sigmoid.default: _of(_log_sigmoid),
    aten.hardsigmoid.default: _of(_hard_sigmoid),
    aten.round.decimals: _round_to,
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    aten.prelu.default: _prelu,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.softplus.default: _softplus,
    aten.softshrink.default: _softshrink,
    aten.hardshrink.default: _hardshrink,
    aten.threshold.default: _threshold,
    aten.logit.default: _logit,
    aten.glu.default: _glu,
    aten.nan_to_num.default: _nan_to_num,
    **dict.fromkeys(
        [aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default],
        _clamp,
    ),
    aten.clamp.Tensor: _clamp_tensors,
    **dict.fromkeys(
        [aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.clone.default,
         aten.contiguous.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default], _identity,
    ),
    aten.to.dtype: _convert,
    aten.isnan.default: _ask("IsNaN"),
    aten.isinf.default: _ask("IsInf"),
    aten.isfinite.default: _is_finite,
    aten.logical_not.default: _logical_not,
    aten.bitwise_not.default: _bitwise_not,
}  # fmt: skip

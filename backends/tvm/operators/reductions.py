"""Sums, means, extremes and orders along dimensions; softmax and norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm import relax

from graphopt.backends.tvm.layouts import Order, Value
from graphopt.backends.tvm.operators.moves import sliced
from graphopt.backends.tvm.operators.rule import Rule, cast, result_type, scalar
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.layer import BatchNorm
from graphopt.ir.ops import aten
from graphopt.utils.printing import dtype_name

op = relax.op


def _dims(a: Arguments, rank: int) -> list[int]:
    """Which dimensions go: all where none is named."""
    given = a.get("dim")
    listed = [given] if isinstance(given, int) else list(given or [])
    return sorted({int(d) % rank for d in listed} if rank else []) or list(range(rank))


def _left(source: Value, gone: Sequence[int], keep: bool) -> Order:
    """The order of dimensions behind a reduction."""
    if keep:
        return source.order
    left = [d for d in range(len(source.shape)) if d not in gone]
    return tuple(left.index(d) for d in source.order if d in left)


def _reduced(function: Callable[..., Any], through: torch.dtype | None = None) -> Rule:
    """In the type of the result, or `through` another where that type has no such sum."""

    def rule(program: Program, a: Arguments) -> Value:
        dtype = result_type(a.node)
        a.ignore("dtype")  # is the type of the result
        source = program.value(a["self"])
        if through is not None:
            source = cast(program, cast(program, source, torch.bool), through)
        else:
            source = cast(program, source, dtype)
        gone, keep = _dims(a, len(source.shape)), bool(a.get("keepdim"))
        if not gone:
            return cast(program, source, dtype)
        expr = function(source.expr, [source.position(d) for d in gone], keep)
        return cast(program, program.emit(expr, shape(a.node), _left(source, gone, keep)), dtype)

    return rule


def _variance(program: Program, a: Arguments) -> Any:
    """Mean of squared distances from the mean, in two passes, n - correction in place of n."""
    source = program.value(a["self"])
    gone, keep = _dims(a, len(source.shape)), bool(a["keepdim"])
    axes = [source.position(d) for d in gone]
    count = torch.Size([source.shape[d] for d in gone]).numel()
    correction = 1 if a["correction"] is None else float(a["correction"])
    mean = program.builder.emit(op.mean(source.expr, axes, True))
    apart = program.builder.emit(op.subtract(source.expr, mean))
    total = program.builder.emit(op.sum(op.multiply(apart, apart), axes, keep))
    divisor = scalar(max(count - correction, 0), result_type(a["self"]))
    values = a.node.meta["val"]
    out, order = tuple((values[0] if isinstance(values, (tuple, list)) else values).shape), _left(source, gone, keep)
    variance = program.emit(op.divide(total, divisor), out, order)
    if a.target is aten.var.correction:
        return variance
    return variance, program.emit(op.mean(source.expr, axes, keep), out, order)


def _position(largest: bool) -> Rule:
    """Where the extreme is; of the whole value where no dimension is named."""

    def rule(program: Program, a: Arguments) -> Value:
        source = program.value(a["self"])
        function, keep, dim = op.argmax if largest else op.argmin, bool(a["keepdim"]), a["dim"]
        if dim is None:
            flat = program.reshaped(program.plain(source), [torch.Size(source.shape).numel()])
            return program.emit(op.reshape(function(flat, 0), list(shape(a.node))), shape(a.node))
        found = function(source.expr, source.position(dim), keep)
        return program.emit(found, shape(a.node), _left(source, [dim % len(source.shape)], keep))

    return rule


def _extreme(largest: bool) -> Rule:
    """Values and where they are."""

    def rule(program: Program, a: Arguments) -> tuple[Value, ...]:
        source, dim, keep = program.value(a["self"]), int(a["dim"]), bool(a["keepdim"])
        axis, order = source.position(dim), _left(source, [dim % len(source.shape)], keep)
        best, place = (op.max, op.argmax) if largest else (op.min, op.argmin)
        out = tuple(a.node.meta["val"][0].shape)
        return program.emit(best(source.expr, axis, keep), out, order), program.emit(
            place(source.expr, axis, keep), out, order
        )

    return rule


def _cumulative(function: Any) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        a.ignore("dtype")  # is the type of the result
        source = cast(program, program.value(a["self"]), result_type(a.node))
        expr = function(source.expr, source.position(int(a["dim"])), dtype_name(result_type(a.node)))
        return program.emit(expr, source.shape, source.order)

    return rule


def _ordered(program: Program, a: Arguments) -> tuple[Value, ...]:
    """sort and topk: values and places, in order."""
    a.ignore("sorted", "stable")  # always are
    source, dim = program.value(a["self"]), int(a["dim"])
    axis, length = source.position(dim), source.shape[dim]
    falling = a["largest"] if "largest" in a else a["descending"]
    places = Value(
        program.builder.emit(op.argsort(source.expr, axis, bool(falling), "int64")), source.shape, source.order
    )
    values = Value(program.builder.emit(op.gather_elements(source.expr, places.expr, axis)), source.shape, source.order)
    count = int(a["k"]) if "k" in a else length
    return tuple(v if count == length else sliced(program, v, dim, 0, count) for v in (values, places))


def _softmax(function: Any) -> Rule:
    def rule(program: Program, a: Arguments) -> Value:
        a.ignore("dtype")  # is the type of the result
        source = cast(program, program.value(a["self"]), result_type(a.node))
        if "half_to_float" in a:
            a.ignore("half_to_float")
        return program.emit(function(source.expr, source.position(int(a["dim"]))), source.shape, source.order)

    return rule


def _filled(program: Program, given: Any, sizes: Sequence[int], number: float, dtype: torch.dtype) -> Any:
    """A weight, or the number that stands for none."""
    if given is not None:
        return program.plain(program.value(given)).expr
    return program.constant(torch.full(tuple(sizes), number, dtype=dtype)).expr


def _layer_norm(program: Program, a: Arguments) -> Value:
    a.ignore("cudnn_enable")
    source, sizes, dtype = program.plain(program.value(a["input"])), a["normalized_shape"], result_type(a.node)
    weight, bias = _filled(program, a["weight"], sizes, 1, dtype), _filled(program, a["bias"], sizes, 0, dtype)
    axes, eps = list(range(-len(sizes), 0)), float(a["eps"])
    if dtype == torch.float64:
        return program.emit(_affine(program, _normal(program, source.expr, axes, eps), weight, bias), shape(a.node))
    return program.emit(op.nn.layer_norm(source.expr, weight, bias, axes, eps), shape(a.node))


def _group_norm(program: Program, a: Arguments) -> Value:
    a.ignore("cudnn_enabled")
    source, dtype = program.plain(program.value(a["input"])), result_type(a.node)
    channels, groups, eps = source.shape[1:2], int(a["num_groups"]), float(a["eps"])
    weight, bias = _filled(program, a["weight"], channels, 1, dtype), _filled(program, a["bias"], channels, 0, dtype)
    if dtype == torch.float64:
        rows = program.builder.emit(op.reshape(source.expr, [source.shape[0], groups, -1]))
        normed = program.builder.emit(op.reshape(_normal(program, rows, [-1], eps), list(source.shape)))
        along = [*channels, *[1] * (len(source.shape) - 2)]
        affine = (program.builder.emit(op.reshape(given, along)) for given in (weight, bias))
        return program.emit(_affine(program, normed, *affine), shape(a.node))
    axes = list(range(2, len(source.shape)))
    return program.emit(op.nn.group_norm(source.expr, weight, bias, groups, 1, axes, eps), shape(a.node))


def _normal(program: Program, x: Any, axes: list[int], eps: float) -> Any:
    """(x - mean) / sqrt(variance + eps) in float64, which TVM's own norms do not take."""
    apart = program.builder.emit(op.subtract(x, program.builder.emit(op.mean(x, axes, True))))
    variance = program.builder.emit(op.mean(op.multiply(apart, apart), axes, True))
    return program.builder.emit(op.divide(apart, op.sqrt(op.add(variance, scalar(eps, torch.float64)))))


def _affine(program: Program, x: Any, weight: Any, bias: Any) -> Any:
    return op.add(program.builder.emit(op.multiply(x, weight)), bias)


def _batch_norm(program: Program, a: Arguments) -> Value:
    """By constant statistics; others are decomposed."""
    a.ignore("momentum", "cudnn_enabled", "training")
    norm = BatchNorm.of(a.node)
    assert norm is not None
    constants = [a[k] for k in ("weight", "bias", "running_mean", "running_var")]
    weight, bias, mean, variance = (None if c is None else program.graph.tensor(c).double() for c in constants)
    assert mean is not None
    assert variance is not None
    scale = (variance + a["eps"]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    source = program.value(a["input"])
    sizes = [-1 if d == 1 else 1 for d in source.order]
    factor, addend = (program.constant(t.to(result_type(a.node)).reshape(sizes)).expr for t in (scale, shift))
    scaled = program.builder.emit(op.multiply(source.expr, factor))
    return program.emit(op.add(scaled, addend), source.shape, source.order)


REDUCTIONS: dict[Any, Rule] = {
    **dict.fromkeys([aten.sum.default, aten.sum.dim_IntList], _reduced(op.sum)),
    **dict.fromkeys([aten.mean.default, aten.mean.dim], _reduced(op.mean)),
    **dict.fromkeys([aten.prod.default, aten.prod.dim_int], _reduced(op.prod)),
    **dict.fromkeys([aten.amax.default, aten.max.default], _reduced(op.max)),
    **dict.fromkeys([aten.amin.default, aten.min.default], _reduced(op.min)),
    **dict.fromkeys([aten.any.default, aten.any.dim, aten.any.dims], _reduced(op.max, torch.int8)),
    **dict.fromkeys([aten.all.default, aten.all.dim, aten.all.dims], _reduced(op.min, torch.int8)),
    aten.var.correction: _variance,
    aten.var_mean.correction: _variance,
    aten.argmax.default: _position(True),
    aten.argmin.default: _position(False),
    aten.max.dim: _extreme(True),
    aten.min.dim: _extreme(False),
    aten.cumsum.default: _cumulative(op.cumsum),
    aten.cumprod.default: _cumulative(op.cumprod),
    aten.topk.default: _ordered,
    aten.sort.default: _ordered,
    aten.sort.stable: _ordered,
    aten.softmax.int: _softmax(op.nn.softmax),
    aten._softmax.default: _softmax(op.nn.softmax),
    aten.log_softmax.int: _softmax(op.nn.log_softmax),
    aten._log_softmax.default: _softmax(op.nn.log_softmax),
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
}

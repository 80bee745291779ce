"""Sums, means, extremes and orders along dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx_ir import Value

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, axes, computed_in, rank, result_type, widened
from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten

MOST_STEPS = 256  # of a running product


def reduce(w: Writer, kind: str, x: Value, dims: list[int], keep: bool) -> Value:
    return w.op(kind, x, w.integers(dims), keepdims=int(keep), noop_with_empty_axes=0) if dims else x


def _dims(a: Arguments) -> tuple[list[int], bool]:
    dims = a.get("dim")
    dims = None if isinstance(dims, (list, tuple)) and not dims else dims
    return axes(dims, rank(a["self"])), bool(a.get("keepdim", False))


def _reduction(kind: str) -> Rule:
    """In the type of the result."""

    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        a.ignore("dtype")  # the result has it
        x = w.read(a["self"], dtype)
        return computed_in(w, widened(dtype), dtype, lambda x: reduce(w, kind, x, *_dims(a)), x)

    return rule


def _truth(kind: str) -> Rule:
    """Whether any or all are true."""

    def rule(w: Writer, a: Arguments) -> Value:
        x = w.cast(w.read(a["self"], torch.bool), torch.bool, torch.int32)
        return w.cast(reduce(w, kind, x, *_dims(a)), torch.int32, result_type(a))

    return rule


def _index(kind: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        source, dim, keep = a["self"], a["dim"], bool(a["keepdim"])
        x = w.read(source, widened(type_of(source)))
        if dim is None:
            x, dim = w.op("Reshape", x, w.integers([-1])), 0
            if keep:
                raise NoRule
        return w.op(kind, x, axis=dim % max(rank(source), 1), keepdims=int(keep))

    return rule


def _extreme_with_index(end: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> tuple[Value, ...]:
        source, dim, keep = a["self"], a["dim"], bool(a["keepdim"])
        dtype = type_of(source)
        inner = widened(dtype)
        x = w.read(source, inner)
        if not rank(source):
            raise NoRule
        value = reduce(w, f"Reduce{end}", x, axes(dim, rank(source)), keep)
        return w.cast(value, inner, dtype), w.op(f"Arg{end}", x, axis=dim % rank(source), keepdims=int(keep))

    return rule


def _centered(w: Writer, a: Arguments) -> tuple[Value, Value]:
    """Variance and mean."""
    dtype, source = type_of(a["self"]), a["self"]
    dims, keep = _dims(a)
    given = a.get("correction")
    correction = int(a["unbiased"]) if "unbiased" in a else 1 if given is None else given
    x = w.read(source)
    mean = reduce(w, "ReduceMean", x, dims, True)
    apart = w.op("Sub", x, mean)
    total = reduce(w, "ReduceSum", w.op("Mul", apart, apart), dims, keep)
    variance = w.op("Div", total, _count(w, [shape(source)[d] for d in dims], correction, dtype))
    return variance, mean if keep else reduce(w, "ReduceMean", x, dims, False)


def _count(w: Writer, sizes: list[Any], correction: float, dtype: torch.dtype) -> Value:
    """The number of elements less the correction, at least 0."""
    if not any(map(w.is_free, sizes)):
        return w.constant(max(torch.Size(sizes).numel() - correction, 0), dtype)
    number = w.op("ReduceProd", w.sizes(sizes), keepdims=0)
    rest = w.op("Sub", w.cast(number, torch.int64, dtype), w.constant(correction, dtype))
    return w.op("Max", rest, w.constant(0, dtype))


def _variance(finish: Callable[[Writer, Value], Value], *, with_mean: bool = False) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value | tuple[Value, ...]:
        variance, mean = _centered(w, a)
        value = finish(w, variance)
        return (value, mean) if with_mean else value

    return rule


def _norm(w: Writer, a: Arguments) -> Value:
    """Of order 1 and 2, and the largest."""
    order = a["ord"]
    kind = {1: "ReduceL1", 2: "ReduceL2"}.get(order)
    if a["dtype"] is not None or (kind is None and order != float("inf")):
        raise NoRule
    x = w.read(a["self"])
    dims, keep = _dims(a)
    return reduce(w, kind, x, dims, keep) if kind else reduce(w, "ReduceMax", w.op("Abs", x), dims, keep)


def _shares(kind: str) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        a.ignore("dtype")
        if not rank(a["self"]):
            raise NoRule
        return w.op(kind, w.read(a["self"], dtype), axis=a["dim"])

    return rule


def _log_sum_exp(w: Writer, a: Arguments) -> Value:
    return reduce(w, "ReduceLogSumExp", w.read(a["self"], result_type(a)), *_dims(a))


def _running_sum(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    a.ignore("dtype")
    x = w.read(a["self"], dtype)
    return w.op("CumSum", x, w.constant(a["dim"], torch.int64)) if rank(a["self"]) else x


def _running_product(w: Writer, a: Arguments) -> Value:
    """For want of an operator: of all elements, each time those behind are ones. Its memory grows by the square of the steps."""
    dtype, source = result_type(a), a["self"]
    a.ignore("dtype")
    x, of = w.read(source, dtype), rank(source)
    if not of:
        a.ignore("dim")
        return x
    dim = a["dim"] % of
    steps = shape(source)[dim]
    if w.is_free(steps) or steps > MOST_STEPS or dtype not in (torch.float32, torch.int32, torch.int64):
        raise NoRule
    before = torch.ones(steps, steps, dtype=torch.bool).tril().reshape(steps, steps, *[1] * (of - dim - 1))
    rows = w.op("Where", w.constant(before), w.op("Unsqueeze", x, w.integers([dim])), w.constant(1, dtype))
    return reduce(w, "ReduceProd", rows, [dim + 1], False)


def _sort(w: Writer, a: Arguments) -> tuple[Value, ...]:
    """All of a dimension, in order; of equal elements, the first comes first."""
    source = a["self"]
    if not rank(source):
        raise NoRule
    a.ignore("stable")
    return _ordered(w, a, shape(source)[a["dim"] % rank(source)], largest=a["descending"])


def _order(w: Writer, a: Arguments) -> Value:
    return _sort(w, a)[1]


def _top(w: Writer, a: Arguments) -> tuple[Value, ...]:
    if not rank(a["self"]):
        raise NoRule
    return _ordered(w, a, a["k"], largest=a["largest"], sorted=int(a["sorted"]))


def _ordered(w: Writer, a: Arguments, count: Any, *, largest: bool, sorted: int = 1) -> tuple[Value, ...]:
    dtype = type_of(a["self"])
    inner = torch.float32 if dtype == torch.float16 else widened(dtype)
    x, dim = w.read(a["self"], inner), a["dim"] % rank(a["self"])
    values, indices = w.ops("TopK", 2, x, w.sizes([count]), axis=dim, largest=int(largest), sorted=sorted)
    return w.cast(values, inner, dtype), indices


def _all_targets(operator: Any, *overloads: str) -> list[Any]:
    return [getattr(operator, o) for o in overloads if hasattr(operator, o)]


REDUCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(_all_targets(aten.sum, "default", "dim_IntList"), _reduction("ReduceSum")),
    **dict.fromkeys(_all_targets(aten.mean, "default", "dim"), _reduction("ReduceMean")),
    aten.prod.dim_int: _reduction("ReduceProd"),
    aten.prod.default: _reduction("ReduceProd"),
    **dict.fromkeys([aten.amax.default, aten.max.default], _reduction("ReduceMax")),
    **dict.fromkeys([aten.amin.default, aten.min.default], _reduction("ReduceMin")),
    **dict.fromkeys(_all_targets(aten.any, "default", "dim", "dims"), _truth("ReduceMax")),
    **dict.fromkeys(_all_targets(aten.all, "default", "dim", "dims"), _truth("ReduceMin")),
    aten.argmax.default: _index("ArgMax"),
    aten.argmin.default: _index("ArgMin"),
    aten.max.dim: _extreme_with_index("Max"),
    aten.min.dim: _extreme_with_index("Min"),
    **dict.fromkeys(_all_targets(aten.var, "default", "dim", "correction"), _variance(lambda w, v: v)),
    **dict.fromkeys(_all_targets(aten.std, "default", "dim", "correction"), _variance(lambda w, v: w.op("Sqrt", v))),
    **dict.fromkeys(
        _all_targets(aten.var_mean, "default", "dim", "correction"), _variance(lambda w, v: v, with_mean=True)
    ),
    **dict.fromkeys(
        _all_targets(aten.std_mean, "default", "dim", "correction"),
        _variance(lambda w, v: w.op("Sqrt", v), with_mean=True),
    ),
    aten.linalg_vector_norm.default: _norm,
    aten.softmax.int: _shares("Softmax"),
    aten.log_softmax.int: _shares("LogSoftmax"),
    aten.logsumexp.default: _log_sum_exp,
    aten.cumsum.default: _running_sum,
    aten.cumprod.default: _running_product,
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.argsort.default: _order,
    aten.topk.default: _top,
}

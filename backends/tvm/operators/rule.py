"""What rules of operators share: one function of the program and the call's arguments for each ATen operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.utils.printing import dtype_name

Rule = Callable[[Program, Arguments], "Value | tuple[Value, ...]"]


def result_type(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and dtype != torch.bool


def cast(program: Program, value: Value, dtype: torch.dtype) -> Value:
    """The value in another type, with torch's rule that everything but zero is true."""
    name = dtype_name(dtype)
    if dtype_of(value) == name:
        return value
    if name == "bool":
        zero = relax.const(0, dtype_of(value))
        return program.emit(relax.op.not_equal(value.expr, zero), value.shape, value.order)
    return program.emit(relax.op.astype(value.expr, name), value.shape, value.order)


def dtype_of(value: Value) -> str:
    return str(value.expr.ty.dtype)


def scalar(number: Any, dtype: torch.dtype) -> Any:
    """A number of this type, as torch converts it."""
    wide = torch.float64 if dtype == torch.float64 else None  # in which torch.tensor(0.1) is not
    return relax.const(torch.tensor(number, dtype=wide).to(dtype).numpy(), dtype_name(dtype))


def aligned(program: Program, values: Sequence[Value], rank: int) -> list[Value]:
    """Values of one rank and one order of dimensions, ready to be broadcast."""
    full = [v for v in values if len(v.shape) == rank]
    order = max(full, key=lambda v: torch.Size(v.shape).numel()).order if full else tuple(range(rank))
    found = []
    for value in values:
        if len(value.shape) < rank:
            sizes = (*[1] * (rank - len(value.shape)), *value.shape)
            value = Value(program.reshaped(program.plain(value), sizes), sizes, tuple(range(rank)))
        found.append(program.laid_out(value, order))
    return found


def spread(program: Program, value: Value, out: Sequence[int]) -> Value:
    """Repeated to this shape, in torch's order."""
    value = program.plain(value)
    return program.emit(relax.op.broadcast_to(value.expr, list(out)), out)


def te_call(program: Program, function: Any, inputs: Sequence[Any], like: Value | Node) -> Value:
    """Call a function of TVM's tensor expressions; shape and order are those of `like`, where that is a value."""
    expr = program.builder.emit_te(function, *inputs)
    if isinstance(like, Value):
        return Value(expr, like.shape, like.order)
    return Value(expr, shape(like), tuple(range(len(shape(like)))))

"""What rules of operators share: one function of the writer and the call's arguments for each ATen operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape

Rule = Callable[[Writer, Arguments], "Value | tuple[Value, ...]"]


class NoRule(Exception):
    """A rule does not know a call with these arguments; torch's exporter may."""


def no_rule(writer: Writer, arguments: Arguments) -> Value:
    raise NoRule


def result_type(a: Arguments) -> torch.dtype:
    """The type that torch answers in."""
    return type_of(a.node)


NARROW = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16)  # for which ONNX Runtime has few kernels


def widened(dtype: torch.dtype) -> torch.dtype:
    """A type that kernels have, of which a narrow one is part; integers wrap around there as in their own."""
    return torch.int32 if dtype in NARROW else dtype


def computed_in(
    w: Writer, inner: torch.dtype, dtype: torch.dtype, function: Callable[..., Value], *values: Value
) -> Value:
    """A function of values of a type, computed in another, in the first again."""
    return w.cast(function(*(w.cast(value, dtype, inner) for value in values)), inner, dtype)


def is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and dtype != torch.bool


def common_type(*arguments: Any) -> torch.dtype:
    """What torch computes in when these meet."""
    found = [a.meta["val"] if isinstance(a, Node) else a for a in arguments]
    found = [f if isinstance(f, (torch.Tensor, int, float, bool)) else int(f) for f in found]
    return torch.result_type(*found) if len(found) == 2 else type_of(arguments[0])


def rank(node: Any) -> int:
    return len(shape(node))


def axes(dims: Any, of: int) -> list[int]:
    """Dimensions counted from the front, in order; all where none is named."""
    if dims is None:
        return list(range(of))
    listed = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    return sorted(d % of for d in listed) if of else []


def reshaped(writer: Writer, value: Value, sizes: tuple[Any, ...]) -> Value:
    """A value in the shape of a result; one free size follows from the others."""
    free = [d for d, size in enumerate(sizes) if writer.is_free(size)]
    empty = any(not writer.is_free(size) and int(size) == 0 for size in sizes)
    if len(free) == 1 and not empty:
        sizes = tuple(-1 if d in free else size for d, size in enumerate(sizes))
    return writer.op("Reshape", value, writer.sizes(sizes), allowzero=1 if empty else None)


def ignore_memory(a: Arguments) -> None:
    """Where a tensor is kept, and how, changes no value."""
    a.ignore("layout", "device", "pin_memory", "memory_format", "non_blocking", "copy")

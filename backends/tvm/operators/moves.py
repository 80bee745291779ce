"""Operators that move values: other sizes, orders, parts, paddings. A permutation moves nothing, it only renames dimensions."""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node
from tvm import relax, te

from graphopt.backends.tvm.layouts import Value, channels_last, plain
from graphopt.backends.tvm.operators.rule import Rule, cast, result_type, scalar, spread, te_call
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten, registered
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

op = relax.op


def _permute(program: Program, a: Arguments) -> Value:
    source = program.value(a["self"])
    rank = len(source.shape)
    dims = list(range(rank))
    if a.target is aten.permute.default:
        dims = list(a["dims"])
    elif a.target is aten.transpose.int:
        i, j = int(a["dim0"]) % rank, int(a["dim1"]) % rank
        dims[i], dims[j] = dims[j], dims[i]
    else:
        dims.reverse()
    return source.permuted(tuple(dims))


def _reshape(program: Program, a: Arguments) -> Value:
    a.ignore_sizes()
    source = program.plain(program.value(a["self"]))
    out = shape(a.node)
    return Value(program.reshaped(source, out), out, plain(len(out)))


def _expand(program: Program, a: Arguments) -> Value:
    a.ignore_sizes()
    return spread(program, program.value(a["self"]), shape(a.node))


def _concat(program: Program, a: Arguments) -> Value:
    given = [node for node in a["tensors"] if shape(node) != (0,)]  # an empty vector joins with anything
    values = [cast(program, program.value(node), result_type(a.node)) for node in given]
    order = values[0].order
    parts = [program.laid_out(v, order).expr for v in values]
    return program.emit(op.concat(parts, values[0].position(int(a["dim"]))), shape(a.node), order)


def _pad(program: Program, a: Arguments) -> Value:
    """With a constant; other modes are decomposed."""
    if "mode" in a and a["mode"] != "constant":
        raise InputError(
            f"{program.graph.site(a.node)}: padding mode {a['mode']!r} has no TVM kernel (node {a.node.name})"
        )
    source, amounts = program.value(a["self"]), list(a["pad"])
    rank = len(source.shape)
    widths = [(0, 0)] * rank
    for number in range(len(amounts) // 2):
        widths[rank - 1 - number] = (amounts[2 * number], amounts[2 * number + 1])
    expr = source.expr
    if any(w < 0 for pair in widths for w in pair):  # cuts off an edge
        axes = list(range(rank))
        begin = [max(-widths[d][0], 0) for d in source.order]
        end = [source.shape[d] - max(-widths[d][1], 0) for d in source.order]
        if any(first >= last for first, last in zip(begin, end, strict=True)):
            return _filled(program, a.node, a["value"] or 0)  # nothing is left to be padded
        expr = program.builder.emit(op.strided_slice(expr, axes, begin, end))
        widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    flat = [w for d in source.order for w in widths[d]]
    return program.emit(op.nn.pad(expr, flat, pad_value=a["value"] or 0), shape(a.node), source.order)


def sliced(program: Program, source: Value, dim: int, start: Any, end: Any, step: int = 1) -> Value:
    """`source[start:end:step]` along a dimension."""
    start, end, step = slice(start, end, step).indices(source.shape[dim])
    axis, sizes = source.position(dim), list(source.shape)
    sizes[dim] = len(range(start, end, step))
    return program.emit(op.strided_slice(source.expr, [axis], [start], [end], [step]), sizes, source.order)


def without(program: Program, source: Value, dim: int) -> Value:
    """A value without a dimension of size 1."""
    dim %= len(source.shape)
    sizes = tuple(n for d, n in enumerate(source.shape) if d != dim)
    order = tuple(d - (d > dim) for d in source.order if d != dim)
    return Value(program.reshaped(source, [sizes[d] for d in order]), sizes, order)


def _slice(program: Program, a: Arguments) -> Value:
    return sliced(program, program.value(a["self"]), int(a["dim"]), a["start"], a["end"], a["step"])


def _select(program: Program, a: Arguments) -> Value:
    source, dim = program.value(a["self"]), int(a["dim"])
    at = int(a["index"]) % source.shape[dim]
    return without(program, sliced(program, source, dim, at, at + 1), dim)


def _narrow(program: Program, a: Arguments) -> Value:
    source, dim = program.value(a["self"]), int(a["dim"])
    start = int(a["start"]) % max(source.shape[dim], 1) if int(a["start"]) < 0 else int(a["start"])
    return sliced(program, source, dim, start, start + int(a["length"]))


def _split(program: Program, a: Arguments) -> tuple[Value, ...]:
    """Parts of equal sizes but for the last, of given sizes, or of size 1 without the dimension."""
    source, dim = program.value(a["self"]), int(a["dim"])
    a.ignore_sizes()
    parts, start = [], 0
    alone = a.target is aten.unbind.int
    for fake in a.node.meta["val"]:
        size = 1 if alone else fake.shape[dim]
        part = sliced(program, source, dim, start, start + size)
        parts.append(without(program, part, dim) if alone else part)
        start += size
    return tuple(parts)


def _diagonal(program: Program, a: Arguments) -> Value:
    """[..., n, ..., m, ...] -> [..., min(n, m)]: the elements at (i, i + offset) of two dimensions."""
    source = program.plain(program.value(a["self"]))
    rank, offset = len(source.shape), int(a["offset"])
    first, second = int(a["dim1"]) % rank, int(a["dim2"]) % rank

    def diagonal(x: Any) -> Any:
        def at(*i: Any) -> Any:
            rest = iter(i[:-1])
            here = {first: i[-1] + max(-offset, 0), second: i[-1] + max(offset, 0)}
            return x[tuple(here[d] if d in here else next(rest) for d in range(rank))]

        return te.compute(shape(a.node), at, "diagonal")

    return te_call(program, diagonal, [source.expr], a.node)


def _flip(program: Program, a: Arguments) -> Value:
    source = program.value(a["self"])
    expr = source.expr
    for dim in a["dims"]:
        expr = program.builder.emit(op.flip(expr, source.position(dim)))
    return Value(expr, source.shape, source.order)


def _shuffle(program: Program, a: Arguments) -> Value:
    """Channels [groups, each] -> [each, groups]."""
    order = channels_last(len(shape(a.node)))
    source = program.laid_out(program.value(a["self"]), order)
    *image, channels = source.stored
    groups, rank = int(a["groups"]), len(image)
    grouped = program.reshaped(source, (*image, groups, channels // groups))
    swapped = program.builder.emit(op.permute_dims(grouped, [*range(rank), rank + 1, rank]))
    return program.emit(op.reshape(swapped, list(source.stored)), source.shape, order)


def _copy(program: Program, a: Arguments) -> Value:
    """The values of `src` in the type and shape of `self`."""
    a.ignore("self", "non_blocking")
    return spread(program, cast(program, program.value(a["src"]), result_type(a.node)), shape(a.node))


def _filled(program: Program, node: Node, number: float) -> Value:
    """A value of the call's shape and type with one number everywhere."""
    dtype = node.meta["val"].dtype
    return program.emit(op.full(list(shape(node)), scalar(number, dtype), dtype_name(dtype)), shape(node))


def _full(program: Program, a: Arguments) -> Value:
    """One number everywhere. Types come from the call's own."""
    a.ignore("dtype", "layout", "device", "pin_memory", "memory_format", "size", "self")
    dtype = result_type(a.node)
    number = a["fill_value"]
    return program.emit(op.full(list(shape(a.node)), scalar(number, dtype), dtype_name(dtype)), shape(a.node))


MOVES: dict[Any, Rule] = {
    **dict.fromkeys(registered(lambda traits: traits.family == "reshape"), _reshape),
    **dict.fromkeys(registered(lambda traits: traits.family == "transpose"), _permute),
    aten.expand.default: _expand,
    aten.cat.default: _concat,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.narrow.default: _narrow,
    **dict.fromkeys([aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int], _split),
    aten.diagonal.default: _diagonal,
    aten.flip.default: _flip,
    aten.channel_shuffle.default: _shuffle,
    aten.copy.default: _copy,
    aten.full.default: _full,
    aten.full_like.default: _full,
}

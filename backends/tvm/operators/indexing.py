"""Values picked and put by indices.

Kernels cannot refuse an index as torch does: one that is beyond an end is that end's, so that nothing beside a value is read or
written.
"""

from __future__ import annotations

from typing import Any

import torch
from tvm import relax, te, tirx
from tvm.ir.expr import GenericConst

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.rule import Rule, cast, dtype_of, result_type, te_call
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten
from graphopt.utils.errors import InputError

op = relax.op


def taken(program: Program, source: Value, places: Any, dim: int) -> Value:
    """`source.index_select(dim, places)`, for an expression of indices with any number of dimensions; -1 is the last value."""
    axis, size = source.position(dim), source.shape[dim]
    many = [int(n) for n in places.ty.shape.values]
    stored = [*source.stored[:axis], *many, *source.stored[axis + 1 :]]
    inside = _is_inside(places, size)

    def take(x: Any, index: Any) -> Any:
        def at(*i: Any) -> Any:
            place = index[i[axis : axis + len(many)]]
            place = place if inside else _within(place, size)
            return x[(*i[:axis], place, *i[axis + len(many) :])]

        return te.compute(stored, at, "take")

    expr = program.builder.emit_te(take, source.expr, places)
    if len(many) != 1:
        assert source.order == tuple(range(len(source.shape))), "indices of several dimensions want torch's order"
        return Value(expr, tuple(stored), tuple(range(len(stored))))
    return Value(expr, (*source.shape[:dim], many[0], *source.shape[dim + 1 :]), source.order)


def _index_select(program: Program, a: Arguments) -> Value:
    source = program.value(a["self"])
    dim = int(a["dim"]) % max(len(source.shape), 1)
    index = program.value(a["index"])
    return taken(program, source, program.reshaped(index, [torch.Size(index.shape).numel()]), dim)


def _embedding(program: Program, a: Arguments) -> Value:
    a.ignore("padding_idx", "scale_grad_by_freq", "sparse")  # matter for gradients
    weight, places = (program.plain(program.value(a[k])) for k in ("weight", "indices"))
    return taken(program, weight, places.expr, 0)


def _gather(program: Program, a: Arguments) -> Value:
    """y[i, j, k] = x[i, index[i, j, k], k] along dimension 1, for instance."""
    a.ignore("sparse_grad")
    source, places = (program.plain(program.value(a[k])) for k in ("self", "index"))
    dim = int(a["dim"]) % max(len(source.shape), 1)

    def gather(x: Any, index: Any) -> Any:
        size = int(x.shape[dim])
        return te.compute(index.shape, lambda *i: x[(*i[:dim], _within(index[i], size), *i[dim + 1 :])], "gather")

    return te_call(program, gather, [source.expr, places.expr], a.node)


def _index(program: Program, a: Arguments) -> Value:
    """x[:, i, j]: indices are repeated to one shape, which stands where the first is, or in front where they are apart."""
    source = program.plain(program.value(a["self"]))
    given = {d: node for d, node in enumerate(a["indices"]) if node is not None}
    if any(result_type(node) == torch.bool for node in given.values()):
        raise InputError(
            f"{program.graph.site(a.node)}: how many values a mask picks only the data decides (node {a.node.name}); "
            "multiply by the mask, or use torch.where"
        )
    places = [program.plain(program.value(node)) for node in given.values()]
    common = torch.broadcast_shapes(*(p.shape for p in places))  # type: ignore[no-untyped-call]
    dims = list(given)
    first = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0

    def pick(x: Any, *indices: Any) -> Any:
        def at(*i: Any) -> Any:
            own, rest = i[first : first + len(common)], iter((*i[:first], *i[first + len(common) :]))
            found = dict(zip(dims, (_place(t, own) for t in indices), strict=True))
            return x[tuple(_within(found[d], n) if d in found else next(rest) for d, n in enumerate(source.shape))]

        return te.compute(shape(a.node), at, "index")

    return te_call(program, pick, [source.expr, *(p.expr for p in places)], a.node)


def _place(index: Any, own: tuple[Any, ...]) -> Any:
    """An element of an index whose sizes of 1 are repeated."""
    tail = own[len(own) - len(index.shape) :]
    return index[tuple(0 if int(n) == 1 else i for n, i in zip(index.shape, tail, strict=True))]


def _is_inside(places: Any, size: int) -> bool:
    """Whether indices are known, and indices of a dimension of this size from its front."""
    if not isinstance(places, GenericConst):
        return False
    known = places.value.numpy()
    return bool(((known >= 0) & (known < size)).all())


def _within(index: Any, size: int) -> Any:
    """An index of a dimension of this size: negative ones count from the end."""
    first, last = tirx.const(0, index.dtype), tirx.const(max(size - 1, 0), index.dtype)
    wrapped = tirx.if_then_else(index < first, index + tirx.const(size, index.dtype), index)
    return tirx.max(tirx.min(wrapped, last), first)


def _scatter(program: Program, a: Arguments) -> Value:
    """x[index[i, j], j] = src[i, j] along dimension 0, for instance."""
    dtype = result_type(a.node)
    source, places = (program.plain(program.value(a[k])) for k in ("self", "index"))
    if "value" in a:
        updates = program.constant(torch.full(places.shape, a["value"], dtype=dtype))
    else:
        updates = program.plain(cast(program, program.value(a["src"]), dtype))
    if updates.shape != places.shape:
        axes, begin = list(range(len(places.shape))), [0] * len(places.shape)
        part = op.strided_slice(updates.expr, axes, begin, list(places.shape))
        updates = program.emit(part, places.shape)
    how, dim = "add" if a.target is aten.scatter_add.default else "update", int(a["dim"])
    first, last = (relax.const(n, dtype_of(places)) for n in (0, max(source.shape[dim] - 1, 0)))
    within = program.builder.emit(op.maximum(op.minimum(places.expr, last), first))
    put = op.scatter_elements(source.expr, within, updates.expr, dim, how)
    return program.emit(put, shape(a.node))


def _unfold(program: Program, a: Arguments) -> Value:
    """[..., n, ...] -> [..., windows, ..., size], the windows lying `step` apart."""
    source = program.plain(program.value(a["self"]))
    dim, step = int(a["dimension"]) % max(len(source.shape), 1), int(a["step"])
    a.ignore_sizes()

    def windows(x: Any) -> Any:
        return te.compute(shape(a.node), lambda *i: x[(*i[:dim], i[dim] * step + i[-1], *i[dim + 1 : -1])], "windows")

    return te_call(program, windows, [source.expr], a.node)


INDEXING: dict[Any, Rule] = {
    aten.index_select.default: _index_select,
    aten.embedding.default: _embedding,
    aten.gather.default: _gather,
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter,
    aten.scatter_add.default: _scatter,
    aten.unfold.default: _unfold,
}

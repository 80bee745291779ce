"""Elements found by their indices, and tensors made of numbers and sizes alone."""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.moves import spread, transposed
from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, ignore_memory, rank, reshaped, result_type
from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten

WHOLE = (torch.int32, torch.int64)


def _index_type(node: Node) -> torch.dtype:
    return type_of(node) if type_of(node) in WHOLE else torch.int64


def _indices(w: Writer, node: Node) -> Value:
    return w.read(node, _index_type(node))


def _embedding(w: Writer, a: Arguments) -> Value:
    a.ignore("padding_idx", "scale_grad_by_freq", "sparse")
    return w.op("Gather", w.read(a["weight"]), _indices(w, a["indices"]), axis=0)


def _index_select(w: Writer, a: Arguments) -> Value:
    if not rank(a["self"]) or not rank(a["index"]):
        raise NoRule
    return w.op("Gather", w.read(a["self"]), _indices(w, a["index"]), axis=a["dim"] % rank(a["self"]))


def _index(w: Writer, a: Arguments) -> Value:
    """By tensors of integers, broadcast to each other, for some of the dimensions."""
    source = a["self"]
    given = {d: index for d, index in enumerate(a["indices"]) if index is not None}
    if any(type_of(index) in (torch.bool, torch.uint8) for index in given.values()):
        raise NoRule  # how many elements there are depends on their values
    if len(given) == 1:
        ((dim, index),) = given.items()
        return w.op("Gather", w.read(source), _indices(w, index), axis=dim)
    sizes, of = shape(source), rank(source)
    rest = [d for d in range(of) if d not in given]
    x = transposed(w, w.read(source), [*given, *rest])
    together = list(given) == list(range(min(given), max(given) + 1))
    width, front = rank(a.node) - len(rest), min(given) if together else 0
    if any(w.is_free(sizes[d]) for d in given):
        found = w.op("GatherND", x, _points(w, given, shape(a.node)[front : front + width]))
    else:
        x = reshaped(w, x, (torch.Size([sizes[d] for d in given]).numel(), *(sizes[d] for d in rest)))
        found = w.op("Gather", x, _places(w, given, sizes), axis=0)
    if not front:
        return found
    # the indices' dimensions stand where the indexed ones did
    order = [*range(width, width + front), *range(width), *range(width + front, width + len(rest))]
    return transposed(w, found, order)


def _points(w: Writer, given: dict[int, Node], common: tuple[Any, ...]) -> Value:
    """Indices of several dimensions, in their common shape, side by side in a last dimension."""
    column = (*common, 1)
    indices = [spread(w, reshaped(w, w.read(n, torch.int64), (*shape(n), 1)), column) for n in given.values()]
    return w.op("Concat", *indices, axis=-1)


def _places(w: Writer, given: dict[int, Node], sizes: tuple[Any, ...]) -> Value:
    """Indices of several dimensions as one of all their elements in a row."""
    total: Value | None = None
    for dim, index in given.items():
        place = w.read(index, torch.int64)
        back = w.op("Less", place, w.constant(0, torch.int64))
        place = w.op("Where", back, w.op("Add", place, w.constant(sizes[dim], torch.int64)), place)
        if total is not None:
            place = w.op("Add", w.op("Mul", total, w.constant(sizes[dim], torch.int64)), place)
        total = place
    assert total is not None
    return total


def _gather(w: Writer, a: Arguments) -> Value:
    a.ignore("sparse_grad")
    source, index = a["self"], a["index"]
    if not rank(source) or not rank(index):
        raise NoRule
    return w.op("GatherElements", w.read(source), _indices(w, index), axis=a["dim"] % rank(source))


def _take_along(w: Writer, a: Arguments) -> Value:
    """As gathering, of values and indices that are broadcast in the other dimensions; without `dim`, of all in a row.

    Along a dimension, indices beyond its n elements wrap around: torch takes their remainder by n, whose sign is n's.
    """
    source, index, dim = a["self"], a["indices"], a["dim"]
    x, places = w.read(source), _indices(w, index)
    if dim is None:
        row = w.integers([-1])
        return w.op("GatherElements", w.op("Reshape", x, row), w.op("Reshape", places, row), axis=0)
    if not rank(source):
        raise NoRule
    dim, wanted = dim % rank(source), shape(a.node)
    count = w.cast(w.size(shape(source)[dim]), torch.int64, _index_type(index))
    places = w.op("Mod", places, count)
    x = spread(w, x, (*wanted[:dim], shape(source)[dim], *wanted[dim + 1 :]))
    return w.op("GatherElements", x, spread(w, places, wanted), axis=dim)


def _scatter(reduction: str | None) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype, source, index = result_type(a), a["self"], a["index"]
        if not rank(source) or dtype in (torch.bool, torch.int8, torch.uint8, torch.int16):
            raise NoRule
        if "value" in a:
            updates = w.op("Expand", w.read(a["value"], dtype), w.sizes(shape(index)))
        elif tuple(shape(a["src"])) != tuple(shape(index)):
            raise NoRule  # only a part is taken
        else:
            updates = w.read(a["src"], dtype)
        given = _indices(w, index)
        return w.op(
            "ScatterElements", w.read(source), given, updates, axis=a["dim"] % rank(source), reduction=reduction
        )

    return rule


def _one_hot(w: Writer, a: Arguments) -> Value:
    classes = a["num_classes"]
    if classes < 0:
        raise NoRule
    return w.op(
        "OneHot", _indices(w, a["self"]), w.constant(classes, torch.int64), w.constant([0, 1], torch.int64), axis=-1
    )


def _filled(value: float | None) -> Rule:
    """A tensor of one number, in the shape of the result."""

    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        number = a["fill_value"] if value is None else value
        a.ignore("self", "size", "dtype", "names")
        ignore_memory(a)
        return w.op("Expand", w.read(number, dtype), w.sizes(shape(a.node)))

    return rule


def _range(w: Writer, a: Arguments) -> Value:
    dtype = result_type(a)
    ignore_memory(a)
    a.ignore("dtype")
    ends = [a.get("start", 0), a["end"], a.get("step", 1)]
    inner = dtype if dtype in (torch.float32, torch.float64, *WHOLE) else torch.int64
    return w.cast(w.op("Range", *(w.read(end, inner) for end in ends)), inner, dtype)


INDEXING: dict[Any, Rule] = {
    aten.embedding.default: _embedding,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    aten.take_along_dim.default: _take_along,
    **dict.fromkeys([aten.scatter.value, aten.scatter.src], _scatter(None)),
    aten.scatter_add.default: _scatter("add"),
    aten.one_hot.default: _one_hot,
    **dict.fromkeys([aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default], _filled(0)),
    **dict.fromkeys([aten.ones.default, aten.ones_like.default, aten.new_ones.default], _filled(1)),
    **dict.fromkeys([aten.full.default, aten.full_like.default, aten.new_full.default], _filled(None)),
    **dict.fromkeys([aten.arange.default, aten.arange.start, aten.arange.start_step], _range),
}

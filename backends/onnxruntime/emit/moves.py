"""Operators that move elements: other shapes, other orders, parts, joins and copies."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from onnx_ir import Value
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, axes, computed_in, rank, reshaped, result_type
from graphopt.backends.onnxruntime.emit.writer import ENDLESS, Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten


def _reshape(w: Writer, a: Arguments) -> Value:
    """Into the shape that the result has."""
    a.ignore_sizes()
    return reshaped(w, w.read(a["self"]), shape(a.node))


def _view(w: Writer, a: Arguments) -> Value:
    """The sizes as they are given, where they are."""
    sizes = a["shape"] if "shape" in a else a["size"]
    wanted = shape(a.node)
    if not any(isinstance(s, Node) for s in sizes) and 0 not in wanted:
        return w.op("Reshape", w.read(a["self"]), w.sizes(sizes))
    return reshaped(
        w, w.read(a["self"]), tuple(f if isinstance(s, int) else s for s, f in zip(sizes, wanted, strict=True))
    )


def _squeeze(w: Writer, a: Arguments) -> Value:
    source = a["self"]
    dims = [d for d in axes(a.get("dim"), rank(source)) if not w.is_free(shape(source)[d]) and shape(source)[d] == 1]
    x = w.read(source)
    return w.op("Squeeze", x, w.integers(dims)) if dims else x


def _unsqueeze(w: Writer, a: Arguments) -> Value:
    return w.op("Unsqueeze", w.read(a["self"]), w.integers([a["dim"] % (rank(a["self"]) + 1)]))


def transposed(w: Writer, x: Value, order: list[int]) -> Value:
    return x if order == list(range(len(order))) else w.op("Transpose", x, perm=order)


def _permute(w: Writer, a: Arguments) -> Value:
    of = rank(a["self"])
    return transposed(w, w.read(a["self"]), [d % of for d in a["dims"]])


def _transpose(w: Writer, a: Arguments) -> Value:
    of = rank(a["self"])
    order = list(range(of))
    if of:
        first, second = a["dim0"] % of, a["dim1"] % of
        order[first], order[second] = order[second], order[first]
    else:
        a.ignore("dim0", "dim1")
    return transposed(w, w.read(a["self"]), order)


def _reverse(w: Writer, a: Arguments) -> Value:
    return transposed(w, w.read(a["self"]), list(range(rank(a["self"])))[::-1])


def _move_dimensions(w: Writer, a: Arguments) -> Value:
    of = rank(a["self"])
    pairs = [
        ([d % of for d in (ds if isinstance(ds, (list, tuple)) else [ds])]) for ds in (a["source"], a["destination"])
    ]
    rest = iter(d for d in range(of) if d not in pairs[0])
    placed = dict(zip(pairs[1], pairs[0], strict=True))
    return transposed(w, w.read(a["self"]), [placed[d] if d in placed else next(rest) for d in range(of)])


def spread(w: Writer, x: Value, sizes: tuple[Any, ...]) -> Value:
    return w.op("Expand", x, w.sizes(sizes))


def _expand(w: Writer, a: Arguments) -> Value:
    a.ignore("implicit")
    sizes = a["size"] if "size" in a else shape(a["other"])
    return spread(w, w.read(a["self"]), tuple(1 if isinstance(s, int) and s == -1 else s for s in sizes))


def _broadcast(w: Writer, a: Arguments) -> Value:
    a.ignore("other")
    return spread(w, w.read(a["self"]), shape(a.node))


def cut(w: Writer, x: Value, dim: int, start: Any, end: Any, step: int = 1) -> Value:
    """Part of a dimension; `end` None: to the end."""
    steps = [w.integers([step])]
    return w.op("Slice", x, w.sizes([start]), w.sizes([ENDLESS if end is None else end]), w.integers([dim]), *steps)


def _slice(w: Writer, a: Arguments) -> Value:
    start = 0 if a["start"] is None else a["start"]
    end = a["end"]
    if isinstance(start, int) and start == 0 and end is None and a["step"] == 1:
        a.ignore("dim")
        return w.read(a["self"])
    return cut(w, w.read(a["self"]), a["dim"] % rank(a["self"]), start, end, a["step"])


def _narrow(w: Writer, a: Arguments) -> Value:
    start, length, source = a["start"], a["length"], a["self"]
    dim = a["dim"] % rank(source)
    if isinstance(start, int) and isinstance(length, int):
        if start < 0 and w.is_free(shape(source)[dim]):
            raise NoRule
        start = start % shape(source)[dim] if start < 0 else start
        return cut(w, w.read(source), dim, start, start + length)
    end = w.op("Add", w.sizes([start]), w.sizes([length]))
    return w.op("Slice", w.read(source), w.sizes([start]), end, w.integers([dim]), w.integers([1]))


def _select(w: Writer, a: Arguments) -> Value:
    index = a["index"]
    at = w.op("Squeeze", w.size(index), w.integers([0])) if isinstance(index, Node) else w.constant(index, torch.int64)
    return w.op("Gather", w.read(a["self"]), at, axis=a["dim"] % rank(a["self"]))


def _parts(w: Writer, a: Arguments) -> tuple[Value, ...]:
    """Slices, as long as the results are."""
    source, dim = a["self"], a["dim"] % rank(a["self"])
    lengths = [part.shape[dim] for part in a.node.meta["val"]]
    x = w.read(source)
    if any(w.is_free(n) for n in lengths):
        starts = _free_starts(w, a, w.dimension(x, dim), len(lengths))
        ends, axes, step = [*starts[1:], w.integers([ENDLESS])], w.integers([dim]), w.integers([1])
        return tuple(w.op("Slice", x, start, end, axes, step) for start, end in zip(starts, ends, strict=True))
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    if a.target is aten.tensor_split.indices:  # indices may fall: the parts are no whole then
        starts = [slice(n, None).indices(shape(source)[dim])[0] for n in (0, *a["indices"])]
    a.ignore_sizes()
    return tuple(cut(w, x, dim, s, s + n) for s, n in zip(starts, lengths, strict=True))


def _free_starts(w: Writer, a: Arguments, size: Value, count: int) -> list[Value]:
    """Where the parts of a dimension of free size begin, one element each."""
    if a.target is aten.tensor_split.indices:
        return [w.sizes([n]) for n in (0, *a["indices"])]
    if a.target is aten.split.Tensor:
        length = w.size(a["split_size"])
        return [w.op("Mul", length, w.integers([n])) for n in range(count)]
    if a.target in (aten.split.sizes, aten.split_with_sizes.default):
        lengths = [w.sizes([n]) for n in a["split_size" if "split_size" in a else "split_sizes"]]
        return list(accumulate(lengths[:-1], lambda start, n: w.op("Add", start, n), initial=w.integers([0])))
    if a.target is aten.chunk.default:  # all but the last are as long as the first
        chunks = a["chunks"]
        length = w.op("Div", w.op("Add", size, w.integers([chunks - 1])), w.integers([chunks]))
        return [w.op("Mul", length, w.integers([n])) for n in range(count)]
    if a.target is not aten.tensor_split.sections:
        raise NoRule
    sections = w.integers([a["sections"]])  # the first ones are longer by one
    length, longer = w.op("Div", size, sections), w.op("Mod", size, sections)
    numbers = [w.integers([n]) for n in range(count)]
    return [w.op("Add", w.op("Mul", length, n), w.op("Min", longer, n)) for n in numbers]


def _unbind(w: Writer, a: Arguments) -> tuple[Value, ...]:
    x, dim = w.read(a["self"]), a["dim"] % rank(a["self"])
    count = len(a.node.meta["val"])
    return tuple(w.op("Gather", x, w.constant(n, torch.int64), axis=dim) for n in range(count))


def _join(w: Writer, a: Arguments) -> Value:
    dtype, of = result_type(a), rank(a.node)
    tensors = [t for t in a["tensors"] if rank(t) == of]  # torch leaves out [0]
    dim = a.get("dim", 0) % of
    values = [w.read(t, dtype) for t in tensors]
    return values[0] if len(values) == 1 else w.op("Concat", *values, axis=dim)


def _stack(w: Writer, a: Arguments) -> Value:
    dtype, dim = result_type(a), a["dim"] % rank(a.node)
    values = [w.op("Unsqueeze", w.read(t, dtype), w.integers([dim])) for t in a["tensors"]]
    return values[0] if len(values) == 1 else w.op("Concat", *values, axis=dim)


def _repeat(w: Writer, a: Arguments) -> Value:
    repeats = a["repeats"] if "repeats" in a else a["dims"]
    x, missing = w.read(a["self"]), len(repeats) - rank(a["self"])
    if missing > 0:
        x = w.op("Unsqueeze", x, w.integers(range(missing)))
    return w.op("Tile", x, w.sizes([*[1] * -missing, *repeats]))


def _repeat_each(w: Writer, a: Arguments) -> Value:
    source, dim, times = a["self"], a["dim"], a["repeats"]
    a.ignore("output_size")
    x = w.read(source)
    if dim is None:
        x, dim, of = w.op("Reshape", x, w.integers([-1])), 0, 1
    else:
        of = rank(source)
        dim %= of
    x = w.op("Unsqueeze", x, w.integers([dim + 1]))
    copies = w.op("Tile", x, w.sizes([*[1] * (dim + 1), times, *[1] * (of - dim - 1)]))
    return reshaped(w, copies, shape(a.node))


def _flip(w: Writer, a: Arguments) -> Value:
    dims = [d % rank(a["self"]) for d in a["dims"]] if rank(a["self"]) else []
    x = w.read(a["self"])
    if not dims:
        a.ignore("dims")
        return x
    count = len(dims)
    ends, back = w.integers([-ENDLESS - 1] * count), w.integers([-1] * count)
    return w.op("Slice", x, back, ends, w.integers(dims), back)


def _roll(w: Writer, a: Arguments) -> Value:
    source, dims = a["self"], list(a["dims"])
    x, sizes = w.read(source), shape(source)
    flat = not dims
    if flat:
        if any(map(w.is_free, sizes)):
            raise NoRule
        x, dims, sizes = w.op("Reshape", x, w.integers([-1])), [0], (torch.Size(sizes).numel(),)
    for shift, dim in zip(a["shifts"], [d % max(len(sizes), 1) for d in dims], strict=True):
        if w.is_free(sizes[dim]) or isinstance(shift, Node):
            raise NoRule
        if sizes[dim] and (shift := shift % sizes[dim]):
            x = w.op("Concat", cut(w, x, dim, -shift, None), cut(w, x, dim, 0, -shift), axis=dim)
    return reshaped(w, x, shape(source)) if flat else x


def _to_space(w: Writer, a: Arguments) -> Value:
    if rank(a["self"]) != 4 or not type_of(a["self"]).is_floating_point:
        raise NoRule
    return w.op("DepthToSpace", w.read(a["self"]), blocksize=a["upscale_factor"], mode="CRD")


def _to_depth(w: Writer, a: Arguments) -> Value:
    source, factor = a["self"], a["downscale_factor"]
    if rank(source) != 4:
        raise NoRule
    batch, channels, height, width = shape(a.node)
    inner = channels // (factor * factor)
    x = reshaped(w, w.read(source), (batch, inner, height, factor, width, factor))
    return reshaped(w, w.op("Transpose", x, perm=[0, 1, 3, 5, 2, 4]), shape(a.node))


def _shuffle(w: Writer, a: Arguments) -> Value:
    source, groups = a["self"], a["groups"]
    batch, channels, *rest = shape(source)
    x = reshaped(w, w.read(source), (batch, groups, channels // groups, *rest))
    return reshaped(w, w.op("Transpose", x, perm=[0, 2, 1, *range(3, len(rest) + 3)]), shape(source))


def _diagonal(w: Writer, a: Arguments) -> Value:
    """Of two dimensions, which leave; its elements come last."""
    source, of = a["self"], rank(a["self"])
    first, second = a["dim1"] % of, a["dim2"] % of
    rows, columns = shape(source)[first], shape(source)[second]
    if w.is_free(rows) or w.is_free(columns):
        raise NoRule
    rest = [d for d in range(of) if d not in (first, second)]
    x = transposed(w, w.read(source), [*rest, first, second])
    x = reshaped(w, x, (*(shape(source)[d] for d in rest), rows * columns))
    places = torch.arange(rows * columns).reshape(rows, columns).diagonal(a["offset"])
    return w.op("Gather", x, w.constant(places, torch.int64), axis=of - 2)


def _windows(w: Writer, a: Arguments) -> Value:
    """The elements of each window come last."""
    source, of = a["self"], rank(a["self"])
    dim = a["dimension"] % max(of, 1)
    if not of or w.is_free(shape(source)[dim]):
        raise NoRule
    places = torch.arange(shape(source)[dim]).unfold(0, a["size"], a["step"])  # [windows, size]
    x = w.op("Gather", w.read(source), w.constant(places, torch.int64), axis=dim)
    return transposed(w, x, [*(d for d in range(of + 1) if d != dim + 1), dim + 1])


def _grids(w: Writer, a: Arguments) -> tuple[Value, ...]:
    tensors, indexing = a["tensors"], a.get("indexing", "ij")
    of = len(tensors)
    axes_ = [1, 0, *range(2, of)] if indexing == "xy" and of > 1 else list(range(of))
    found = []
    for axis, tensor, part in zip(axes_, tensors, a.node.meta["val"], strict=True):
        column = w.op("Reshape", w.read(tensor), w.integers([-1 if d == axis else 1 for d in range(of)]))
        found.append(spread(w, column, tuple(part.shape)))
    return tuple(found)


def _triangle(upper: bool) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        dtype = result_type(a)
        inner = dtype if dtype in (torch.float32, torch.float64, torch.int64, torch.bool) else torch.int64
        inner = torch.float32 if dtype == torch.float16 else inner
        diagonal = w.constant(a["diagonal"], torch.int64)
        return computed_in(w, inner, dtype, lambda x: w.op("Trilu", x, diagonal, upper=int(upper)), w.read(a["self"]))

    return rule


MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(w: Writer, a: Arguments) -> Value:
    dtype, of, amounts = result_type(a), rank(a["self"]), list(a["pad"])
    mode = MODES[a.get("mode", "constant") or "constant"]
    fill = a.get("value", 0) or 0
    front, back = amounts[::2][::-1], amounts[1::2][::-1]
    none = [0] * (of - len(front))
    inner = torch.int32 if dtype == torch.int16 else dtype
    given = [w.constant(fill, inner)] if fill or dtype not in (torch.float32,) else []
    padding = w.sizes([*none, *front, *none, *back])
    more = given if mode == "constant" else []
    return computed_in(w, inner, dtype, lambda x: w.op("Pad", x, padding, *more, mode=mode), w.read(a["self"]))


MOVES: dict[Any, Rule] = {
    **dict.fromkeys([aten.view.default, aten.reshape.default, aten._unsafe_view.default], _view),
    **dict.fromkeys([aten.flatten.using_ints, aten.unflatten.int], _reshape),
    **dict.fromkeys([aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims], _squeeze),
    aten.unsqueeze.default: _unsqueeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _reverse,
    aten.numpy_T.default: _reverse,
    **dict.fromkeys([aten.movedim.int, aten.movedim.intlist], _move_dimensions),
    aten.expand.default: _expand,
    aten.expand_as.default: _broadcast,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    **dict.fromkeys(
        [
            aten.split.Tensor,
            aten.split.sizes,
            aten.split_with_sizes.default,
            aten.chunk.default,
            aten.tensor_split.sections,
            aten.tensor_split.indices,
        ],
        _parts,
    ),
    aten.unbind.int: _unbind,
    aten.cat.default: _join,
    aten.stack.default: _stack,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_each,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.pixel_shuffle.default: _to_space,
    aten.pixel_unshuffle.default: _to_depth,
    aten.channel_shuffle.default: _shuffle,
    aten.diagonal.default: _diagonal,
    aten.unfold.default: _windows,
    **dict.fromkeys([aten.meshgrid.default, aten.meshgrid.indexing], _grids),
    aten.tril.default: _triangle(False),
    aten.triu.default: _triangle(True),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}

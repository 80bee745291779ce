"""Pools, and sizes of images changed. What weighs how much is asked of torch itself, which computes it once, on constants."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import Node
from tvm import relax, te, tirx

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.indexing import taken
from graphopt.backends.tvm.operators.products import batched, unbatched
from graphopt.backends.tvm.operators.rule import Rule, result_type
from graphopt.backends.tvm.pools import emit_max_pool, emit_mean
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten, family
from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

op = relax.op
MAX_POOLS = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
WITH_INDICES = {aten.max_pool2d_with_indices.default: 2, aten.max_pool3d_with_indices.default: 3}
AVERAGES = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
ADAPTIVE = {
    aten.adaptive_avg_pool1d.default: 1, aten.adaptive_avg_pool2d.default: 2, aten.adaptive_avg_pool3d.default: 3,
    aten._adaptive_avg_pool2d.default: 2, aten._adaptive_avg_pool3d.default: 3,
}  # fmt: skip
ADAPTIVE_MAX = {
    aten.adaptive_max_pool1d.default: 1, aten.adaptive_max_pool2d.default: 2, aten.adaptive_max_pool3d.default: 3,
}  # fmt: skip
RESIZES = {
    aten.upsample_nearest1d.default: 1, aten.upsample_nearest2d.default: 2, aten.upsample_nearest3d.default: 3,
    aten._upsample_nearest_exact1d.default: 1, aten._upsample_nearest_exact2d.default: 2,
    aten._upsample_nearest_exact3d.default: 3, aten.upsample_linear1d.default: 1, aten.upsample_bilinear2d.default: 2,
    aten.upsample_trilinear3d.default: 3, aten.upsample_bicubic2d.default: 2,
    aten._upsample_bilinear2d_aa.default: 2, aten._upsample_bicubic2d_aa.default: 2,
}  # fmt: skip
SCALES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}
BESIDE = 2  # size of the dimensions that stay: torch's kernels for antialiasing answer wrongly for images of width 1
MANY = 8  # elements that take part in one, from which on a matrix product is the shorter program


def _numbers(given: Any, dims: int) -> list[int]:
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    return [int(n) for n in (listed * dims if len(listed) == 1 else listed)]


def _window(a: Arguments, dims: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, padding and dilation."""
    kernel = _numbers(a["kernel_size"], dims)
    stride = _numbers(a["stride"], dims) if a["stride"] else kernel
    dilation = _numbers(a["dilation"], dims) if "dilation" in a else [1] * dims
    return kernel, stride, _numbers(a["padding"], dims), dilation


def _ends(
    sizes: Sequence[int], out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    """How far the last window reaches behind the image; 0 where it ends inside."""
    each = zip(sizes, out, kernel, stride, padding, dilation, strict=True)
    return [max((o - 1) * s + d * (k - 1) + 1 - p - n, 0) for n, o, k, s, p, d in each]


def _widths(rank: int, begin: Sequence[int], end: Sequence[int]) -> list[int]:
    lead = [0] * (2 * (rank - len(begin)))
    return [*lead, *(w for pair in zip(begin, end, strict=True) for w in pair)]


def _max_pool(program: Program, a: Arguments) -> Value:
    """By our kernels for signals and images; `ceil_mode` is a matter of sizes alone."""
    dims = MAX_POOLS[a.target]
    out = shape(a.node)
    kernel, stride, padding, dilation = _window(a, dims)
    a.ignore("ceil_mode")
    source = program.value(a["self"])
    if dims < 3 and len(out) == dims + 2:
        return emit_max_pool(program, a.node)
    x = batched(program, source, dims)
    ends = _ends(x.shape[2:], out[-dims:], kernel, stride, padding, dilation)
    dtype = result_type(a.node)
    lowest = torch.finfo(dtype).min if dtype.is_floating_point else torch.iinfo(dtype).min
    padded = program.builder.emit(op.nn.pad(x.expr, _widths(dims + 2, padding, ends), pad_value=lowest))
    function = {1: op.nn.max_pool1d, 2: op.nn.max_pool2d, 3: op.nn.max_pool3d}[dims]
    pooled = function(padded, kernel, stride, [0] * (2 * dims), dilation)
    sizes = (*x.shape[:2], *out[-dims:])
    return unbatched(program, _cut(program, pooled, sizes), out, dims)


def _cut(program: Program, expr: Any, sizes: Sequence[int]) -> Any:
    """The first windows, as many as torch has: where the image is longer than they reach, another would fit."""
    found = program.builder.emit(expr)
    have = [int(n) for n in found.ty.shape.values]
    axes = [d for d, (n, m) in enumerate(zip(have, sizes, strict=True)) if n != m]
    return op.strided_slice(found, axes, [0] * len(axes), [sizes[d] for d in axes]) if axes else found


def _max_pool_with_indices(program: Program, a: Arguments) -> tuple[Value, ...]:
    """Maxima, and the place in its image of the first one of each window."""
    dims = WITH_INDICES[a.target]
    kernel, stride, padding, dilation = _window(a, dims)
    a.ignore("ceil_mode")
    out = tuple(a.node.meta["val"][0].shape)
    x = batched(program, program.value(a["self"]), dims)
    sizes, dtype = x.shape[2:], dtype_name(a.node.meta["val"][0].dtype)

    def places(index: Any, steps: Any) -> list[Any]:
        return [o * s - p + r * d for o, s, p, r, d in zip(index[2:], stride, padding, steps, dilation, strict=True)]

    def inside(at: list[Any]) -> Any:
        return tirx.all(*(c for i, n in zip(at, sizes, strict=True) for c in (i >= 0, i < n)))

    def flat(at: list[Any]) -> Any:
        number = at[0]
        for i, n in zip(at[1:], sizes[1:], strict=True):
            number = number * n + i
        return number.astype("int64")

    def axes(name: str) -> list[Any]:
        return [te.reduce_axis((0, k), f"{name}{n}") for n, k in enumerate(kernel)]

    def pool(image: Any) -> Any:
        low, last = tirx.min_value(dtype), tirx.const(2**62, "int64")
        r, s = axes("r"), axes("s")
        shape_ = (*x.shape[:2], *out[-dims:])

        def value(i: Any, steps: Any) -> Any:
            at = places(i, steps)
            return tirx.if_then_else(inside(at), image[(*i[:2], *at)], low)

        best = te.compute(shape_, lambda *i: te.max(value(i, r), axis=r), "best")

        def place(i: Any) -> Any:
            at = places(i, s)
            hit = tirx.all(inside(at), value(i, s) == best[i])
            return tirx.if_then_else(hit, flat(at), last)

        return [best, te.compute(shape_, lambda *i: te.min(place(i), axis=s), "place")]

    both = program.builder.emit_te(pool, x.expr)
    results = [program.builder.emit(relax.TupleGetItem(both, n)) for n in range(2)]
    return tuple(unbatched(program, r, out, dims) for r in results)


def _average_pool(program: Program, a: Arguments) -> Value:
    """Mean over whole windows of the padded image, times what torch divides by otherwise: by a divisor, by fewer at the edges."""
    dims, node = AVERAGES[a.target], a.node
    kernel, stride, padding, dilation = _window(a, dims)
    a.ignore("ceil_mode", "count_include_pad", "divisor_override")  # torch itself minds them, on ones
    out, x = shape(node), batched(program, program.value(a["self"]), dims)
    ends = _ends(x.shape[2:], out[-dims:], kernel, stride, padding, dilation)
    expr = x.expr
    if any(padding) or any(ends):
        expr = program.builder.emit(op.nn.pad(expr, _widths(dims + 2, padding, ends)))
    function = {1: op.nn.avg_pool1d, 2: op.nn.avg_pool2d, 3: op.nn.avg_pool3d}[dims]
    pooled = _cut(program, function(expr, kernel, stride, [0] * (2 * dims)), (*x.shape[:2], *out[-dims:]))
    factor = average_factor(node, x.shape[2:], kernel, stride, padding, ends)
    if not bool((factor == 1).all()):
        pooled = op.multiply(program.builder.emit(pooled), program.constant(factor.to(result_type(node))).expr)
    return unbatched(program, pooled, out, dims)


def average_factor(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ends: Sequence[int],
) -> Tensor:  # fmt: skip
    """What an average pool's windows are to be multiplied by where each was divided by its full size: [1, 1, *out]."""
    target: Any = node.target
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    wanted: Tensor = target(ones, *node.args[1:], **node.kwargs)
    widths = [w for pair in zip(padding, ends, strict=True) for w in pair]
    padded = torch.nn.functional.pad(ones, [w for d in reversed(range(len(sizes))) for w in widths[2 * d : 2 * d + 2]])
    plain: Tensor = target(padded, list(kernel), list(stride))[tuple(slice(n) for n in wanted.shape)]
    return wanted / plain


def _adaptive_average(program: Program, a: Arguments) -> Value:
    node, dims = a.node, ADAPTIVE[a.target]
    wanted = _numbers(a["output_size"], dims)
    x = program.value(a["self"])
    if family(node) == "global_average_pool" and len(x.shape) == dims + 2:
        if result_type(node) == torch.float16 and dims < 3:
            return emit_mean(program, node)
        axes = [x.position(d) for d in range(2, len(x.shape))]
        return program.emit(op.mean(x.expr, axes, True), shape(node), x.order)
    for d, size in enumerate(wanted):
        dim = len(x.shape) - dims + d

        def resize(image: Tensor, d: int = d, size: int = size) -> Tensor:
            target: Any = node.target
            return target(image, [size if d == i else BESIDE for i in range(dims)])  # type: ignore[no-any-return]

        x = _resized(program, node, x, dim, _matrix(resize, x.shape[dim], d, dims, result_type(node)))
    return x


def _adaptive_max(program: Program, a: Arguments) -> tuple[Value, ...]:
    """Largest elements of windows of any size, one dimension after another; not their places."""
    node, dims = a.node, ADAPTIVE_MAX[a.target]
    if any(reader.target is operator.getitem and reader.args[1] == 1 for reader in node.users):
        raise InputError(
            f"{program.graph.site(node)}: TVM has no operator for the places of {node.target} (node {node.name}); use its values "
            "alone, or an ONNX Runtime target (arm, x86)"
        )
    x = program.value(a["self"])
    first = len(x.shape) - dims
    for dim, count in enumerate(_numbers(a["output_size"], dims), first):
        x = _largest(program, x, dim, count)
    return x, program.emit(op.astype(x.expr, "int64"), x.shape, x.order)


def _largest(program: Program, x: Value, dim: int, count: int) -> Value:
    """The largest elements of `count` windows along a dimension, which begin and end where torch's adaptive pools' do."""
    size = x.shape[dim]
    ends = torch.tensor([-(-(n + 1) * size // count) for n in range(count)])
    starts = torch.tensor([n * size // count for n in range(count)])
    total: Value | None = None
    for step in range(int((ends - starts).max())):
        one = taken(program, x, _indices(torch.minimum(starts + step, ends - 1)), dim)
        total = one if total is None else program.emit(op.maximum(total.expr, one.expr), one.shape, one.order)
    assert total is not None
    return total


def _resize(program: Program, a: Arguments) -> Value:
    """Every mode resizes one dimension after another, each by a matrix."""
    node, dims = a.node, RESIZES[a.target]
    x = program.value(a["self"])
    wanted, scales = _numbers(a["output_size"], dims), [a[name] for name in SCALES[dims]]
    corners = [a["align_corners"]] if "align_corners" in a else []
    dtype = result_type(node) if result_type(node) == torch.float64 else torch.float32
    for d in range(dims):
        dim = 2 + d

        def resize(image: Tensor, d: int = d) -> Tensor:
            sizes = [wanted[d] if d == i else BESIDE for i in range(dims)]
            target: Any = node.target
            return target(image, sizes, *corners, *(s if d == i else None for i, s in enumerate(scales)))  # type: ignore[no-any-return]

        x = _resized(program, node, x, dim, _matrix(resize, x.shape[dim], d, dims, dtype))
    return x


def _matrix(resize: Any, size: int, axis: int, dims: int, dtype: torch.dtype) -> Tensor:
    """What resizing does along one dimension: [out, in], by its answers to the columns of the identity."""
    image = torch.eye(size, dtype=dtype).reshape(size, 1, *[size if d == axis else 1 for d in range(dims)])
    beside = [size if d == axis else BESIDE for d in range(dims)]
    result: Tensor = resize(image.expand(size, 1, *beside).contiguous())
    return result.movedim(2 + axis, 1).flatten(2)[:, :, 0].T


def _resized(program: Program, node: Node, x: Value, dim: int, matrix: Tensor) -> Value:
    """y[o] = sum of matrix[o, i] x[i] along a dimension."""
    out = (*x.shape[:dim], len(matrix), *x.shape[dim + 1 :])
    if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)):
        return x
    count = max(int((matrix != 0).sum(1).max()), 1)
    weights, places = matrix.abs().topk(count, 1)
    weights = matrix.gather(1, places)
    if count == 1 and bool((weights == 1).all()):
        return taken(program, x, _indices(places[:, 0]), dim)
    dtype = result_type(node)
    if not dtype.is_floating_point:
        raise InputError(
            f"{program.graph.site(node)}: TVM resizes {dtype_name(dtype)} by nearest neighbours only (node {node.name}); "
            "convert to float first"
        )
    if count > MANY:
        order = (*(d for d in x.order if d != dim), dim)
        rows = program.laid_out(x, order).expr
        return program.emit(op.matmul(rows, program.constant(matrix.T.to(dtype)).expr), out, order)
    sizes = [-1 if d == dim else 1 for d in x.order]
    total = None
    for weight, place in zip(weights.T, places.T, strict=True):
        one = taken(program, x, _indices(place), dim)
        part = program.builder.emit(op.multiply(one.expr, program.constant(weight.to(dtype).reshape(sizes)).expr))
        total = part if total is None else program.builder.emit(op.add(total, part))
    return Value(total, out, x.order)


def _indices(places: Tensor) -> Any:
    return relax.const(places.int().contiguous().numpy(), "int32")


WINDOWS: dict[Any, Rule] = {
    **dict.fromkeys(MAX_POOLS, _max_pool),
    **dict.fromkeys(WITH_INDICES, _max_pool_with_indices),
    **dict.fromkeys(AVERAGES, _average_pool),
    **dict.fromkeys(ADAPTIVE, _adaptive_average),
    **dict.fromkeys(ADAPTIVE_MAX, _adaptive_max),
    **dict.fromkeys(RESIZES, _resize),
}

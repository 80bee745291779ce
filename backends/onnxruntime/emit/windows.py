"""Convolutions and pools."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx_ir import Value
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.onnxruntime.emit.moves import transposed
from graphopt.backends.onnxruntime.emit.rule import NoRule, Rule, rank, reshaped
from graphopt.backends.onnxruntime.emit.writer import Writer, type_of
from graphopt.ir.arguments import Arguments
from graphopt.ir.averages import averages, beyond
from graphopt.ir.calls import shape
from graphopt.ir.layer import Pool
from graphopt.ir.ops import aten
from graphopt.lowering.integers.legalize import is_dequantized
from graphopt.utils.errors import InputError


def each(given: Any, dims: int) -> list[int]:
    """One number for all dimensions, or one for each."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    return listed * dims if len(listed) == 1 else listed


def batched(w: Writer, source: Node, dims: int, function: Any) -> Value:
    """Apply a function to an image, as the one sample of a batch where it has none."""
    x = w.read(source)
    if rank(source) == dims + 2:
        return function(x)
    return w.op("Squeeze", function(w.op("Unsqueeze", x, w.integers([0]))), w.integers([0]))


def _convolution(w: Writer, a: Arguments) -> Value:
    weight, bias = a["weight"], a["bias"]
    dims = rank(weight) - 2
    stride, padding, dilation = (each(a[name], dims) for name in ("stride", "padding", "dilation"))
    transposed = "output_padding" in a
    kind = "ConvTranspose" if transposed else "Conv"
    more: dict[str, Any] = {"output_padding": each(a["output_padding"], dims)} if transposed else {}
    sides = [] if bias is None else [w.read(bias)]
    return batched(
        w, a["input"], dims,
        lambda x: w.op(
            kind, x, w.read(weight), *sides, strides=stride, pads=padding * 2, dilations=dilation, group=a["groups"],
            kernel_shape=list(map(int, shape(weight)[2:])), **more,
        ),
    )  # fmt: skip


def _window(a: Arguments, dims: int) -> dict[str, Any]:
    kernel = each(a["kernel_size"], dims)
    return {
        "kernel_shape": kernel,
        "strides": each(a["stride"] or kernel, dims),
        "pads": each(a["padding"], dims) * 2,
    }


def _max_pool(dims: int) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        source, options = a["self"], _window(a, dims) | {"dilations": each(a["dilation"], dims)}
        dtype = type_of(source)
        if not dtype.is_floating_point and dtype not in (torch.int8, torch.uint8):
            raise NoRule
        ends: list[int] = []
        if a["ceil_mode"] and any(map(w.is_free, shape(source)[-dims:])):
            options["ceil_mode"] = 1
        elif a["ceil_mode"]:
            # ONNX Runtime derives another size than torch where a last window would begin in the padding, and refuses padding as
            # large as a kernel.
            ends, begin = _beyond(Pool(a.node, "max_pool", dims)), options["pads"][:dims]
            fits = all(map(int.__lt__, ends, options["kernel_shape"]))
            options["pads"], ends = [*begin, *(ends if fits else [0] * dims)], [] if fits else ends
        lowest = w.constant(-math.inf if dtype.is_floating_point else torch.iinfo(dtype).min, dtype) if ends else None
        return batched(w, source, dims, lambda x: w.op("MaxPool", _padded(w, x, [0] * dims, ends, lowest), **options))

    return rule


def _padded(w: Writer, x: Value, begin: list[int], ends: list[int], fill: Value | None = None) -> Value:
    """An image with this padding, of zeros where nothing else is given; itself where no ends are."""
    return w.op("Pad", x, w.integers([0, 0, *begin, 0, 0, *ends]), *([] if fill is None else [fill])) if ends else x


def _average_pool(dims: int) -> Rule:
    def rule(w: Writer, a: Arguments) -> Value:
        source, divisor = a["self"], a.get("divisor_override")
        options, ends = _averages(w, a, dims)
        begin = options["pads"][:dims]
        options["pads"] = None if ends else options["pads"]
        pooled = batched(w, source, dims, lambda x: w.op("AveragePool", _padded(w, x, begin, ends), **options))
        return pooled if divisor is None and not ends else w.op("Mul", pooled, _factor(w, a, dims, ends))

    return rule


def _averages(w: Writer, a: Arguments, dims: int) -> tuple[dict[str, Any], list[int]]:
    """Options with which ONNX gives torch's means; where none do, the padding at the end behind which a factor makes them so."""
    options, pool = _window(a, dims), Pool(a.node, "average_pool", dims)
    a.ignore("count_include_pad", "ceil_mode")  # `averages` reads them
    form = averages(pool, divided=a.get("divisor_override") is not None)
    if form is not None:
        counted = {"count_include_pad": int(form.counts), "ceil_mode": int(form.rounds_up)}
        return options | counted | {"pads": [*options["pads"][:dims], *form.ends]}, []
    if not any(map(w.is_free, shape(a["self"])[-dims:])):
        return options | {"count_include_pad": 1}, _beyond(pool)
    if is_dequantized(
        a["self"]
    ):  # ONNX Runtime's integer kernel divides by whole windows; that for floats, as torch does
        raise InputError(
            f"{w.graph.site(a.node)}: {a.target} of codes with ceil_mode=True, whose padding counts, is written for images of "
            "fixed sizes; capture with fixed sizes, or count no padding"
        )
    return options | {"count_include_pad": 1, "ceil_mode": 1}, []


def _beyond(pool: Pool) -> list[int]:
    """As much padding at the end of each dimension as torch's last windows reach."""
    return beyond(pool, shape(pool.input)[-pool.dims :], shape(pool.node)[-pool.dims :])


def _factor(w: Writer, a: Arguments, dims: int, ends: list[int]) -> Value:
    """What makes torch's answers of the means of windows: one number for each window where they differ.

    Args:
        ends: padding at the end of an image that is padded first.

    Raises:
        InputError: the image has no fixed size.
    """
    sizes, divisor = shape(a["self"])[-dims:], a.get("divisor_override")
    if any(map(w.is_free, sizes)):
        raise InputError(
            f"{w.graph.site(a.node)}: {a.target} with divisor_override={divisor} is written for images of fixed sizes, not "
            f"{tuple(map(str, sizes))}; capture with fixed sizes, or multiply the mean yourself"
        )
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    window = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"])
    theirs = a.target(ones, *window, a["count_include_pad"], *([divisor] if divisor else []))
    if ends:
        around = list(zip(each(a["padding"], dims), ends, strict=True))
        ours = a.target(F.pad(ones, [n for pair in reversed(around) for n in pair]), *window[:2])
    else:
        ours = a.target(ones, *window, True)
    factor = (theirs / ours)[0, 0]
    if bool((factor == factor.flatten()[0]).all()):
        factor = factor.flatten()[0]
    return w.constant(factor, type_of(a["self"]))


def _adaptive(dims: int) -> Rule:
    """Windows of one size where there are such; else each dimension by the matrix of its means."""

    def rule(w: Writer, a: Arguments) -> Value:
        source, (sizes, wanted) = a["self"], _image_sizes(w, a, dims)
        if any(s % n for s, n in zip(sizes, wanted, strict=True)):
            means = [F.adaptive_avg_pool1d(torch.eye(s).double(), n) for s, n in zip(sizes, wanted, strict=True)]
            return by_matrices(w, source, means)
        kernel = [s // n for s, n in zip(sizes, wanted, strict=True)]
        return batched(w, source, dims, lambda x: w.op("AveragePool", x, kernel_shape=kernel, strides=kernel))

    return rule


def _image_sizes(w: Writer, a: Arguments, dims: int) -> tuple[list[int], list[int]]:
    """Of the image that an adaptive pool reads, and of the one that it gives."""
    sizes, wanted = list(shape(a["self"])[-dims:]), each(a["output_size"], dims)
    wanted = [s if n is None else n for s, n in zip(sizes, wanted, strict=True)]
    if any(w.is_free(s) or not n for s, n in zip(sizes, wanted, strict=True)):
        raise NoRule
    return sizes, wanted


def _adaptive_max(dims: int) -> Rule:
    """Largest elements of windows of any size, dimension by dimension; not their places."""

    def rule(w: Writer, a: Arguments) -> tuple[Value, ...]:
        source, (sizes, wanted) = a["self"], _image_sizes(w, a, dims)
        if _reads_part(a.node, 1):
            raise NoRule
        x, of = w.read(source), rank(source)
        for back, (size, count) in enumerate(zip(sizes, wanted, strict=True)):
            axis = of - dims + back
            starts, ends = (
                [n * size // count for n in range(count)],
                [-(-(n + 1) * size // count) for n in range(count)],
            )
            longest = max(e - s for s, e in zip(starts, ends, strict=True))
            places = [[min(s + k, e - 1) for k in range(longest)] for s, e in zip(starts, ends, strict=True)]
            windows = w.op("Gather", x, w.constant(places, torch.int64), axis=axis)
            x = w.op("ReduceMax", windows, w.integers([axis + 1]), keepdims=0)
        return x, x

    return rule


def _reads_part(node: Node, number: int) -> bool:
    """Whether one of several results of a call is read."""
    return any(reader.args[1] == number for reader in node.users if reader.target is operator.getitem)


def _columns(w: Writer, a: Arguments) -> Value:
    """[N, C, H, W] -> [N, C * kernel, windows]: the elements of each window in a column."""
    source = a["self"]
    *lead, channels, height, width = shape(source)
    kernel, dilation, padding, stride = (
        tuple(each(a[name], 2)) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    if w.is_free(height) or w.is_free(width):
        raise NoRule
    x = w.read(source)
    if any(padding):
        x = w.op("Pad", x, w.integers([*[0] * len(lead), 0, *padding] * 2))
    tall, wide = height + 2 * padding[0], width + 2 * padding[1]
    numbers = torch.arange(tall * wide, dtype=torch.float64).reshape(1, 1, tall, wide)
    places = F.unfold(numbers, kernel, dilation=dilation, stride=stride)[0].long()  # [kernel, windows]
    x = w.op(
        "Gather", reshaped(w, x, (*lead, channels, tall * wide)), w.constant(places, torch.int64), axis=len(lead) + 1
    )
    return reshaped(w, x, shape(a.node))


def by_matrices(w: Writer, source: Node, matrices: Sequence[Tensor]) -> Value:
    """The last dimensions, each by one product with [size, size of the result]."""
    x, of = w.read(source), rank(source)
    for back, matrix in enumerate(reversed(matrices)):
        order = list(range(of))
        order[of - 1], order[of - 1 - back] = order[of - 1 - back], order[of - 1]
        if torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype)):
            continue
        if back == 1:
            x = w.op("MatMul", w.constant(matrix.T, type_of(source)), x)
        else:
            x = transposed(w, w.op("MatMul", transposed(w, x, order), w.constant(matrix, type_of(source))), order)
    return x


WINDOWS: dict[Any, Rule] = {
    **dict.fromkeys(
        [aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose1d.default,
         aten.conv_transpose2d.input, aten.conv_transpose3d.input], _convolution,
    ),
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.max_pool3d.default: _max_pool(3),
    aten.avg_pool1d.default: _average_pool(1),
    aten.avg_pool2d.default: _average_pool(2),
    aten.avg_pool3d.default: _average_pool(3),
    aten.adaptive_avg_pool1d.default: _adaptive(1),
    aten.adaptive_avg_pool2d.default: _adaptive(2),
    aten.adaptive_avg_pool3d.default: _adaptive(3),
    aten.adaptive_max_pool1d.default: _adaptive_max(1),
    aten.adaptive_max_pool2d.default: _adaptive_max(2),
    aten.adaptive_max_pool3d.default: _adaptive_max(3),
    aten.im2col.default: _columns,
}  # fmt: skip

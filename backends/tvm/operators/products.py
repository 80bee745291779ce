"""Matrix products, and convolutions beyond our own kernels: transposed, over three dimensions, with computed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.operators.rule import Rule, result_type
from graphopt.backends.tvm.program import Program
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.ir.ops import aten, info, registered
from graphopt.utils.printing import dtype_name

op = relax.op
LAYOUTS = {1: ("NCW", "OIW", "IOW"), 2: ("NCHW", "OIHW", "IOHW"), 3: ("NCDHW", "OIDHW", "IODHW")}


def _matmul(program: Program, a: Arguments) -> Value:
    left = a["self"]
    right = next(a[k] for k in ("other", "mat2", "vec", "tensor") if k in a)
    x, y = (program.plain(program.value(v)).expr for v in (left, right))
    return program.emit(op.matmul(x, y), shape(a.node))


def _linear(program: Program, a: Arguments) -> Value:
    x, weight = (program.plain(program.value(a[k])) for k in ("input", "weight"))
    product = program.builder.emit(op.matmul(x.expr, _transposed(program, weight)))
    if a["bias"] is not None:
        product = program.builder.emit(op.add(product, program.value(a["bias"]).expr))
    return Value(product, shape(a.node), tuple(range(len(shape(a.node)))))


def _transposed(program: Program, weight: Value) -> Any:
    return weight.expr if len(weight.shape) == 1 else program.plain(weight.permuted((1, 0))).expr


def _numbers(given: Any, dims: int) -> list[int]:
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    return [int(n) for n in (listed * dims if len(listed) == 1 else listed)]


def batched(program: Program, value: Value, dims: int) -> Value:
    """In torch's order, with a batch of one where there is none."""
    value = program.plain(value)
    if len(value.shape) == dims + 2:
        return value
    sizes = (1, *value.shape)
    return Value(program.reshaped(value, sizes), sizes, tuple(range(dims + 2)))


def unbatched(program: Program, expr: Any, out: Sequence[int], dims: int) -> Value:
    """The result for a value that `batched` was given, of which torch's shape is `out`."""
    if len(out) == dims + 2:
        return program.emit(expr, out)
    return program.emit(op.reshape(program.builder.emit(expr), list(out)), out)


def _biased(program: Program, expr: Any, bias: Any, dims: int) -> Any:
    if bias is None:
        return expr
    value = program.value(bias)
    channels = program.reshaped(value, (1, value.shape[0], *[1] * dims))
    return op.add(program.builder.emit(expr), channels)


def _convolution(program: Program, a: Arguments) -> Value:
    dims = info(a.node).dims
    x, weight = batched(program, program.value(a["input"]), dims), program.plain(program.value(a["weight"]))
    stride, padding, dilation = (_numbers(a[k], dims) for k in ("stride", "padding", "dilation"))
    function = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}[dims]
    data, kernel, _ = LAYOUTS[dims]
    result = function(
        x.expr, weight.expr, strides=stride, padding=padding * 2, dilation=dilation, groups=int(a["groups"]),
        data_layout=data, kernel_layout=kernel, out_dtype=dtype_name(result_type(a.node)),
    )  # fmt: skip
    return unbatched(program, _biased(program, result, a["bias"], dims), shape(a.node), dims)


def _transposed_convolution(program: Program, a: Arguments) -> Value:
    """TVM's own where it is; dilated ones and those over three dimensions as convolutions of the input with zeros put between."""
    dims = info(a.node).dims
    x, weight = batched(program, program.value(a["input"]), dims), program.plain(program.value(a["weight"]))
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, extra, dilation = (_numbers(a[k], dims) for k in names)
    groups, (data, forward, kernel) = int(a["groups"]), LAYOUTS[dims]
    dtype = dtype_name(result_type(a.node))
    if dims < 3 and set(dilation) == {1} and groups == 1 and all(e < s for e, s in zip(extra, stride, strict=True)):
        function = op.nn.conv1d_transpose if dims == 1 else op.nn.conv2d_transpose
        result = function(
            x.expr, weight.expr, strides=stride, padding=padding * 2, output_padding=extra, dilation=dilation,
            groups=groups, data_layout=data, kernel_layout=kernel, out_dtype=dtype,
        )  # fmt: skip
    else:
        reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        stuffed = _with_zeros_between(program, x, stride, reach, extra)
        function = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}[dims]
        result = function(
            stuffed, _turned(program, weight, groups), strides=[1] * dims, padding=[0] * (2 * dims), dilation=dilation,
            groups=groups, data_layout=data, kernel_layout=forward, out_dtype=dtype,
        )  # fmt: skip
    return unbatched(program, _biased(program, result, a["bias"], dims), shape(a.node), dims)


def _with_zeros_between(
    program: Program, x: Value, stride: Sequence[int], reach: Sequence[int], extra: Sequence[int]
) -> Any:
    """[N, C, *n] -> [N, C, *(n - 1) stride + 1 + 2 reach + extra]; a negative reach cuts off."""
    expr, sizes = x.expr, list(x.shape)
    for d, (s, r, e) in enumerate(zip(stride, reach, extra, strict=True), start=2):
        apart = [*sizes[: d + 1], 1, *sizes[d + 1 :]]
        widths = [0] * (2 * len(apart))
        widths[2 * (d + 1) + 1] = s - 1
        padded = program.builder.emit(op.nn.pad(program.builder.emit(op.reshape(expr, apart)), widths))
        sizes[d] *= s
        joined = program.builder.emit(op.reshape(padded, sizes))
        length = sizes[d] - (s - 1)
        begin, end = max(-r, 0), min(length, length + r + e)
        expr = program.builder.emit(op.strided_slice(joined, [d], [begin], [end]))
        widths = [0] * (2 * len(sizes))
        widths[2 * d], widths[2 * d + 1] = max(r, 0), max(r + e, 0)
        expr = program.builder.emit(op.nn.pad(expr, widths))
        sizes[d] = end - begin + max(r, 0) + max(r + e, 0)
    return expr


def _turned(program: Program, weight: Value, groups: int) -> Any:
    """[in, out / groups, *kernel] -> [out, in / groups, *kernel], every kernel turned around."""
    inputs, outputs, *kernel = weight.shape
    grouped = program.builder.emit(op.reshape(weight.expr, [groups, inputs // groups, outputs, *kernel]))
    dims = range(3, 3 + len(kernel))
    swapped = program.builder.emit(op.permute_dims(grouped, [0, 2, 1, *dims]))
    expr = program.builder.emit(op.reshape(swapped, [groups * outputs, inputs // groups, *kernel]))
    for d in range(2, 2 + len(kernel)):
        expr = program.builder.emit(op.flip(expr, d))
    return expr


PRODUCTS: dict[Any, Rule] = {
    **dict.fromkeys(
        [aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default], _matmul
    ),
    aten.linear.default: _linear,
    **dict.fromkeys(registered(lambda traits: traits.family == "conv"), _convolution),
    **dict.fromkeys(registered(lambda traits: traits.family == "conv_transpose"), _transposed_convolution),
}

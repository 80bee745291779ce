"""Emit pools: maxima of codes or floats, means of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm.grids import codes_of, dtype_of
from graphopt.backends.tvm.images import each, image_of, two, with_batch
from graphopt.backends.tvm.layouts import Value, channels_last, plain
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Pool
from graphopt.ir.calls import shape
from graphopt.ir.layer import Pool as MaxPool
from graphopt.lowering.integers.fusion import Kernel
from graphopt.utils.printing import dtype_name


def emit_average(
    program: Program,
    node: Node,
    kernel: Kernel,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    counts: bool,
) -> Value:
    x, y = kernel.grids[0], kernel.grid
    assert y is not None
    image = image_of(program, with_batch(program, program.value(node.args[0]), len(size) + 2))
    spec = Pool(
        "average", image.stored, each(size, 1), each(stride, 1), pads_of(image, node, size, stride, padding),  # type: ignore[arg-type]
        data=dtype_of(x), zero_point=x.zero_point, scale=x.scale, result=codes_of(y), result_scale=y.scale, count_padding=counts,
    )  # fmt: skip
    out = shape(node)
    if len(out) == len(size) + 2:
        return pooled(program, spec, image, out)
    return Value(program.reshaped(program.plain(pooled(program, spec, image, (1, *out))), out), out, plain(len(out)))


def emit_mean(program: Program, node: Node) -> Value:
    """Of float images, each as a whole; summed in float32."""
    image = image_of(program, program.value(node.args[0]))
    size = (image.shape[2], image.shape[3])
    spec = Pool("average", image.stored, size, size, data=dtype_name(node.meta["val"].dtype))  # type: ignore[arg-type]
    return pooled(program, spec, image, shape(node))


def emit_max_pool(program: Program, node: Node) -> Value:
    """Of codes or floats."""
    image = image_of(program, program.value(node.args[0]))
    pool = MaxPool.of(node)
    assert pool is not None
    data = dtype_name(node.meta["val"].dtype)
    pads = pads_of(image, node, pool.kernel, pool.stride, pool.padding, pool.dilation)
    windows = (each(pool.kernel, 1), each(pool.stride, 1), pads, each(pool.dilation, 1))
    spec = Pool("max", image.stored, *windows, data=data)  # type: ignore[arg-type]
    return pooled(program, spec, image, shape(node))


def pads_of(
    image: Value,
    node: Node,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Any:
    """As far as the last window reaches, which may be beyond the padding or end before it."""
    found = []
    sizes, out = image.shape[2:], two(shape(node)[-len(size) :])
    for n, o, k, s, p, d in zip(
        sizes, out, each(size, 1), each(stride, 1), each(padding, 0), each(dilation, 1), strict=True
    ):
        found.append((p, max((o - 1) * s + d * (k - 1) + 1 - p - n, 0)))
    return tuple(found)


def pooled(program: Program, spec: Pool, image: Value, out: Sequence[int]) -> Value:
    result = program.call(spec, [image.expr])
    order = channels_last(len(out))
    stored = tuple(out[d] for d in order)
    if stored != spec.result_shape:
        result = program.builder.emit(relax.op.reshape(result, list(stored)))
    return Value(result, tuple(out), order)

"""How layers and pools see their data: images with channels innermost, signals as images of height 1, rows as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx.node import Node
from tvm import relax

from graphopt.backends.tvm.layouts import Order, Value, channels_last, plain
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Conv, Epilogue
from graphopt.ir.calls import shape
from graphopt.ir.ops import family
from graphopt.utils.errors import GraphoptError


def image_of(program: Program, value: Value) -> Value:
    """A signal or an image as [N, C, H, W] with channels innermost."""
    value = program.laid_out(value, channels_last(len(value.shape)))
    n, c, *sizes = value.shape
    height, width = two(sizes)
    return Value(program.reshaped(value, (n, height, width, c)), (n, c, height, width), channels_last(4))


def with_batch(program: Program, value: Value, rank: int) -> Value:
    """A value of this rank; one of less is a single image, which becomes a batch."""
    if len(value.shape) == rank:
        return value
    sizes = (1, *value.shape)
    return Value(program.reshaped(program.plain(value), sizes), sizes, plain(rank))


def layer_input(program: Program, node: Node, weight: torch.Tensor, reader: Node) -> tuple[Value, torch.Tensor]:
    """What a layer reads, as an image with channels innermost, and its weight as [O, C / groups, kh, kw].

    A linear layer reads rows as pixels. Behind a flattened image it is a convolution as large as the image, so that codes need
    not be brought into torch's order.
    """
    if weight.dim() == 2:
        image = _flattened(node)
        if image is not None and channels_last(len(shape(image))) == program.value(image).order:
            sizes = shape(image)[1:]
            return image_of(program, program.value(image)), weight.reshape(len(weight), sizes[0], *two(sizes[1:]))
        value = program.plain(program.value(node))
        rows = prod(value.shape[:-1])
        pixels = (1, 1, rows, value.shape[-1])
        return Value(program.reshaped(value, pixels), (1, value.shape[-1], 1, rows), channels_last(4)), weight[
            :, :, None, None
        ]
    if weight.dim() > 4:
        site = program.graph.site(reader)
        raise GraphoptError(
            f"{site}: there is no TVM kernel for integer convolutions over three dimensions; "
            f"leave it in float with formats={{{site!r}: None}}"
        )
    value = with_batch(program, program.value(node), weight.dim())
    return image_of(program, value), weight.reshape(*weight.shape[:2], *two(weight.shape[2:]))


def _flattened(node: Node) -> Node | None:
    """The image whose dimensions behind the batch this reshape joins, if they are more than channels."""
    if family(node) != "reshape" or len(shape(node)) != 2:
        return None
    image: Any = node.args[0]
    whole = shape(image)[0] == shape(node)[0] and 3 <= len(shape(image)) <= 4
    return image if whole else None


def layer_spec(
    source: Value,
    weight: Sequence[int],
    window: Any,
    data: str,
    zero_point: int,
    epilogue: Epilogue,
    pads: Sequence[int] = (),
) -> Conv:
    """`pads`: around the data besides the window's own, (left, right[, top, bottom])."""
    top, left = each(window.padding, 0)
    before_x, behind_x, before_y, behind_y = (*pads, 0, 0, 0, 0)[:4]
    return Conv(
        shape=source.stored,  # type: ignore[arg-type]
        channels=int(weight[0]),
        kernel=(int(weight[2]), int(weight[3])),
        stride=each(window.stride, 1),
        padding=((top + before_y, top + behind_y), (left + before_x, left + behind_x)),
        dilation=each(window.dilation, 1),
        groups=window.groups,
        data=data,
        zero_point=zero_point,
        epilogue=epilogue,
    )


def call_layer(
    program: Program,
    spec: Conv,
    source: Value,
    operands: Sequence[Any],
    constants: Sequence[Any],
    out: Sequence[int],
    order: Order,
) -> Value:
    """Call a layer's kernel.

    Args:
        operands: nodes it adds.
        out: torch's shape of the result.
        order: of the result's dimensions in memory.
    """
    added = [program.reshaped(program.laid_out(program.value(o), order), spec.result_shape) for o in operands]
    result = program.call(spec, [source.expr, *added], constants)
    stored = tuple(out[d] for d in order)
    if stored != spec.result_shape:
        result = program.builder.emit(relax.op.reshape(result, list(stored)))
    return Value(result, tuple(out), order)


def order_of(weight: torch.Tensor, rank: int) -> Order:
    """In which a layer of this weight leaves a result: features innermost, which may be one image's without a batch."""
    if weight.dim() == 2:
        return plain(rank)
    return channels_last(rank) if rank == weight.dim() else (*range(1, rank), 0)


def two(sizes: Sequence[int]) -> tuple[int, int]:
    """Sizes of an image; a signal is one of height 1."""
    return (int(sizes[0]), int(sizes[1])) if len(sizes) == 2 else (1, int(sizes[0]))


def each(values: Sequence[int], filler: int) -> tuple[int, int]:
    return (
        (int(values[0]), int(values[1]))
        if len(values) == 2
        else (filler, int(values[0]))
        if values
        else (filler, filler)
    )

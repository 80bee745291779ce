"""The arrays a layer's function takes behind the data: checked, and with what can be folded folded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from graphopt.backends.tvm.schedules.emit import Array
from graphopt.backends.tvm.schedules.lookup import Rows, arranged
from graphopt.backends.tvm.schedules.specs import Conv


def arguments(
    spec: Conv, packed: tuple[int, ...], weight: str, channels: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """{name: (shape, dtype)} of a layer's function with these packed weights, and vectors of this many channels."""
    named: dict[str, tuple[tuple[int, ...], str]] = {"x": (spec.shape, spec.data)}
    if spec.epilogue.residual:
        named["residual"] = (spec.result_shape, spec.epilogue.residual)
    named["weight"] = (packed, weight)
    if spec.integer or spec.epilogue.bias:
        named["bias"] = ((channels,), "int32" if spec.integer else "float32")
    if spec.integer:
        named |= dict.fromkeys(multipliers(spec), ((channels,), "float32"))
    if spec.epilogue.table:
        named["table"] = (Rows.SHAPE, spec.epilogue.table)
    return named | {"y": (spec.result_shape, spec.result_dtype)}


def multipliers(spec: Conv) -> tuple[str, ...]:
    """Of an integer layer: arrays of one float32 for each channel."""
    return ("multiplier", *(("positive", "negative") if spec.epilogue.slopes else ()))


def arrange(spec: Conv) -> Callable[[Array], Array] | None:
    """How a function takes the layer's table; None where it has none."""
    codes = spec.epilogue.codes
    return partial(arranged, data=codes.dtype) if spec.epilogue.table and codes else None


def vectors(
    spec: Conv, weight: Array, bias: Array | None, multiplier: Array | None, shift: int = 0
) -> tuple[Array, ...]:
    """One number a channel each: bias, and for integers the multiplier, or the rows of it: that, and the slopes above and below.

    sum (x - z) w = sum x' w - (z - shift) sum w, where x' = x - shift is what the kernel reads: the last term joins the bias.
    """
    if not spec.integer:
        zeros = np.zeros(spec.channels, np.float32)
        return (zeros if bias is None else bias.astype(np.float32),) if spec.epilogue.bias else ()
    assert multiplier is not None
    share = (spec.zero_point - shift) * weight.reshape(spec.channels, -1).astype(np.int64).sum(1)
    folded = (0 if bias is None else bias.astype(np.int64)) - share
    count = len(multipliers(spec))
    scales = np.broadcast_to(np.asarray(multiplier, dtype=np.float32), (count, spec.channels))
    return folded.astype(np.int32), *map(np.ascontiguousarray, scales)


def check(spec: Conv, weight: Array, bias: Array | None, multiplier: Array | None) -> None:
    """Raises:
    ValueError: they are not what the spec describes.
    """
    if tuple(weight.shape) != spec.weight_shape:
        raise ValueError(f"weights of shape {tuple(weight.shape)} for a layer that takes {spec.weight_shape}")
    if spec.integer and weight.dtype != np.int8:
        raise ValueError(f"integer layers take int8 weights, not {weight.dtype}; give codes, not values")
    if spec.integer and multiplier is None:
        raise ValueError("an integer layer needs its multiplier, s_x s_w / s_y")
    if spec.epilogue.slopes and (np.ndim(multiplier) != 2 or len(multiplier) != 3):  # type: ignore[arg-type]
        raise ValueError("a layer with slopes needs three rows: its multiplier, the slope above zero and the one below")
    if bias is not None and not spec.epilogue.bias:
        raise ValueError("a bias was given, but the spec says Epilogue(bias=False)")

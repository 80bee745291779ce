"""Codes: conversions to them and back, and what computes on them."""

from __future__ import annotations

from typing import Any

import torch
from onnx_ir import Value

from graphopt.backends.onnxruntime.emit.rule import Rule, computed_in
from graphopt.backends.onnxruntime.emit.writer import Writer
from graphopt.backends.onnxruntime.nbits import MATMUL_BLOCKS, OPERATOR
from graphopt.ir.arguments import Arguments
from graphopt.ir.calls import shape
from graphopt.lowering.integers.legalize import CLIP_CODES, GLOBAL_AVERAGE_POOL
from graphopt.lowering.qdq import Q
from graphopt.utils.printing import dtype_name


def _quantize(w: Writer, a: Arguments) -> Value:
    dtype, low, high = a["dtype"], a["quant_min"], a["quant_max"]
    codes = w.op(
        "QuantizeLinear", w.read(a["input"]), w.constant(a["scale"], torch.float32), w.constant(a["zero_point"], dtype)
    )
    info = torch.iinfo(dtype)
    if (low, high) == (info.min, info.max):
        return codes
    return _clipped(w, codes, low, high, dtype)  # fewer bits than the storage has


def _dequantize(w: Writer, a: Arguments) -> Value:
    a.ignore("quant_min", "quant_max", "out_dtype")
    scale, point = w.constant(a["scale"], torch.float32), w.constant(a["zero_point"], a["dtype"])
    return w.op("DequantizeLinear", w.read(a["input"]), scale, point)


def _dequantize_channels(w: Writer, a: Arguments) -> Value:
    a.ignore("quant_min", "quant_max", "out_dtype")
    dtype = a["dtype"]  # the graph keeps zero points in more bits
    points = w.derived(a["zero_points"], dtype_name(dtype), lambda points: points.to(dtype))
    assert points is not None
    return w.op("DequantizeLinear", w.read(a["input"]), w.read(a["scales"]), points, axis=a["axis"])


def _clip(w: Writer, a: Arguments) -> Value:
    return _clipped(w, w.read(a["codes"]), a["low"], a["high"], a["codes"].meta["val"].dtype)


def _clipped(w: Writer, codes: Value, low: int, high: int, dtype: torch.dtype) -> Value:
    """Clip codes; those of 16 bits, for which ONNX Runtime has no kernel, in 32."""
    inner = torch.int32 if dtype in (torch.int16, torch.uint16) else dtype
    ends = w.constant(low, inner), w.constant(high, inner)
    return computed_in(w, inner, dtype, lambda codes: w.op("Clip", codes, *ends), codes)


def _pool(w: Writer, a: Arguments) -> Value:
    return w.op("GlobalAveragePool", w.read(a["x"]))


def _multiply_blocks(w: Writer, a: Arguments) -> Value:
    out, _, packed = shape(a["codes"])
    inputs = [None if a[name] is None else w.read(a[name]) for name in ("x", "codes", "scale", "zero_point")]
    bias = [] if a["bias"] is None else [None, w.read(a["bias"])]
    bits = a["bits"]
    return w.op(
        OPERATOR, *inputs, *bias, domain="com.microsoft", K=a["length"], N=int(out), bits=bits,
        block_size=int(packed) * 8 // bits,
    )  # fmt: skip


QUANTIZERS: dict[Any, Rule] = {
    Q.quantize_per_tensor.default: _quantize,
    Q.dequantize_per_tensor.default: _dequantize,
    Q.dequantize_per_channel.default: _dequantize_channels,
    CLIP_CODES: _clip,
    GLOBAL_AVERAGE_POOL: _pool,
    MATMUL_BLOCKS: _multiply_blocks,
}

"""Quantize weights that are float although the layer reads codes: their range is known, as they are constants.

    scale = max |w| / 127,  code = round(w / scale)         for each output channel

Needs:  a constant weight, the layer's input read from a grid of 8 bits.
Keeps:  each weight within half a step of its channel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    Change,
    Editor,
    constant,
    is_eight_bits,
    read_grid,
    site,
)
from graphopt.targets import Target


def quantize_weights(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    format = target.formats.weights
    top = 2 ** (format.bits - 1) - 1
    for node in [n for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")]:
        weight = constant(node.inputs[1])
        if (
            weight is None
            or weight.dtype != np.float32
            or weight.ndim < 2
            or not is_eight_bits(read_grid(node.inputs[0]))
        ):
            continue
        stacked = weight.ndim > 2 and node.op_type == "MatMul"
        axis = _axis(node, weight.ndim) if format.per_channel and not stacked else None
        others = tuple(d for d in range(weight.ndim) if d != axis) if axis is not None else None
        scale = np.maximum(np.abs(weight).max(axis=others), np.finfo(np.float32).tiny * 2**20).astype(np.float32) / top
        spread = scale if axis is None else np.expand_dims(scale, others or ())
        codes = np.clip(np.rint(weight / spread), -top, top).astype(np.int8)
        name = f"{site(node)}_weight"
        parts = zip((codes, scale, np.zeros(scale.shape, np.int8)), ("codes", "scale", "zero"), strict=True)
        operands = [editor.constant(part, f"{name}_{what}") for part, what in parts]
        made = editor.node(DEQUANTIZES, operands, name, node, attributes=None if axis is None else {"axis": axis})
        editor.reroute(node.inputs[1], made, [(node, 1)])
        changes.append(Change(site(node), f"weight quantized to {format}"))
    return changes


def _axis(node: ir.Node, rank: int) -> int:
    """The dimension of output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if transposed else rank - 1

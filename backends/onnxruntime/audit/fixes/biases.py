"""Store biases of integer layers as what their kernels add: int32 on the grid of the sums.

    sum = sum_k (x_k - zero_x)(w_k - zero_w)        scale of a sum = scale of x * scale of w, zero point 0

Needs:  input and weight of the layer read from grids; a constant bias.
Keeps:  the bias within half a step of the sums, which is far below a step of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import DEQUANTIZES, Array, Change, Editor, constant, site
from graphopt.targets import Target

LAYERS = ("Conv", "Gemm", "ConvTranspose")


def store_biases(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type in LAYERS and len(n.inputs) > 2 and n.inputs[2] is not None]:
        x, w = (_scale(v) for v in node.inputs[:2])
        bias = _number(node.inputs[2])
        if x is None or w is None or bias is None or x.size != 1 or w.size not in (1, bias.size):
            continue
        wanted = (x.reshape(()) * w.reshape(-1)).astype(np.float32)
        maker = node.inputs[2].producer()
        if maker is not None and _stored(maker, wanted):
            continue
        scaled = np.rint(bias.astype(np.float64) / wanted)
        if np.any(np.abs(scaled) > np.iinfo(np.int32).max):
            continue
        name = f"{site(node)}_bias"
        parts: list[Any] = [scaled.astype(np.int32), wanted if w.size > 1 else wanted.reshape(())]
        parts.append(np.zeros(np.shape(parts[1]), np.int32))
        operands = [editor.constant(p, f"{name}_{n}") for p, n in zip(parts, ("codes", "scale", "zero"), strict=True)]
        axis = {"axis": 0} if w.size > 1 else None
        made = editor.node(DEQUANTIZES, operands, name, node, attributes=axis)
        editor.reroute(node.inputs[2], made, [(node, 2)])
        changes.append(Change(site(node), "bias stored as int32 on the grid of the sums"))
    return changes


def _scale(value: ir.Value | None) -> Array | None:
    maker = value.producer() if value is not None else None
    return constant(maker.inputs[1]) if maker is not None and maker.op_type == DEQUANTIZES else None


def _number(value: ir.Value | None) -> Array | None:
    """A constant bias, as it is or as its codes say; one number to each channel."""
    found = constant(value)
    maker = value.producer() if value is not None else None
    if found is None and maker is not None and maker.op_type == DEQUANTIZES:
        codes, scale = constant(maker.inputs[0]), constant(maker.inputs[1])
        zero = constant(maker.inputs[2]) if len(maker.inputs) > 2 else np.zeros(())
        if codes is None or scale is None or zero is None:
            return None
        found = (codes.astype(np.float64) - zero) * scale
    return found if found is not None and found.ndim == 1 else None


def _stored(maker: ir.Node, wanted: Array) -> bool:
    """Whether a bias is on the grid of the sums already."""
    if maker.op_type != DEQUANTIZES:
        return False
    codes, scale = constant(maker.inputs[0]), constant(maker.inputs[1])
    zero = constant(maker.inputs[2]) if len(maker.inputs) > 2 else None
    fits = codes is not None and codes.dtype == np.int32 and not np.any(zero)
    return fits and scale is not None and bool(np.allclose(scale.reshape(-1), wanted, rtol=1e-4, atol=0))

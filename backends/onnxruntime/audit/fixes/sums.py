"""Fold a constant that is added behind MatMul into the layer: Gemm has an integer kernel with a bias.

    MatMul(x, W) + b  =  Gemm(x, W, b)                              x: [M, K], W: [K, N], b: [N]
    x: [..., M, K]       Reshape, Gemm, Reshape

Needs:  the product read by the addition only; W constant (through its quantizer), b constant along the last dimension.
Keeps:  every value, up to float rounding; `biases.py` then stores b as integers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    Array,
    Change,
    Editor,
    constant,
    read_grid,
    site,
)
from graphopt.targets import Target


def fold_sums(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type == "MatMul"]:
        readers = [r for r, _ in node.outputs[0].uses()]
        if len(readers) != 1 or readers[0].op_type != "Add" or node.outputs[0].is_graph_output():
            continue
        total = readers[0]
        bias_value = next((v for v in total.inputs if v is not node.outputs[0]), None)
        bias, (x, w) = constant(bias_value), node.inputs[:2]
        weight, rank = (
            _weight(w),
            None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape),
        )
        if bias is None or weight is None or rank is None or rank < 2 or weight.ndim != 2:
            continue
        if bias.size != weight.shape[1] or bias.shape[-1:] != (weight.shape[1],) or bias_value is None:
            continue
        flat, grid = x, read_grid(x)
        if rank > 2:
            sizes = editor.constant(np.array([-1, weight.shape[0]], np.int64), f"{site(node)}_rows")
            flat = editor.node("Reshape", [x, sizes], f"{site(node)}_flat", node)
            if grid is not None:
                flat = editor.round(flat, grid, node)
        flat_bias = bias_value if bias.ndim == 1 else editor.constant(bias.reshape(-1), f"{site(node)}_bias")
        made = editor.node("Gemm", [flat, w, flat_bias], f"{site(node)}_gemm", total)
        if rank > 2:
            shape = editor.node("Shape", [x], f"{site(node)}_shape", total)
            first = editor.constant(np.array([0], np.int64), f"{site(node)}_first")
            last = editor.constant(np.array([rank - 1], np.int64), f"{site(node)}_last")
            leading = editor.node("Slice", [shape, first, last], f"{site(node)}_leading", total)
            width = editor.constant(np.array([weight.shape[1]], np.int64), f"{site(node)}_width")
            sizes = editor.node("Concat", [leading, width], f"{site(node)}_sizes", total, attributes={"axis": 0})
            made = editor.node("Reshape", [made, sizes], f"{site(node)}_back", total)
        changes.append(Change(site(node), "the constant added behind it became the bias of Gemm"))
        editor.reroute(total.outputs[0], made)
        editor.remove(total)
        editor.remove(node)
    return changes


def _weight(value: ir.Value | None) -> Array | None:
    """A weight's codes, or its numbers where it is float."""
    maker = value.producer() if value is not None else None
    return constant(maker.inputs[0]) if maker is not None and maker.op_type == DEQUANTIZES else constant(value)

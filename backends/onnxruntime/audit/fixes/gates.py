"""Write HardSigmoid, HardSwish, Swish and Tanh between quantizers as operators that have integer kernels.

    HardSigmoid(x) = clamp(a x + b, 0, 1) = a clamp(x + b/a, 0, 1/a)
        addition has a kernel: the sum is quantized to a grid that spans [0, 1/a], whose ends do the clamping, and its codes are
        then read on a grid a times as fine, which does the multiplication
    HardSwish(x) = x HardSigmoid(x), a = 1/6, b = 1/2       Howard et al. 2019, section 5.2
    Swish(x) = x Sigmoid(a x)                               with a = 1; Sigmoid's values lie in [0, 1]
    Tanh(x) = 2 Sigmoid(2 x) - 1
        the same codes read on a grid twice as wide; what Sigmoid answers is quantized to steps of 1/254, and read in steps
        of 1/127 with a zero point 127 codes above the lowest, which does the rest

No range has to be known but those that the functions have by themselves.

Needs:  x read from a grid of 8 bits with one scale.
Keeps:  the gate within half a step of 1/255 (of 1/127 for Tanh); a grid the file had for it is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    QUANTIZES,
    Change,
    Editor,
    FixedGrid,
    is_eight_bits,
    read_grid,
    site,
)
from graphopt.targets import Target

Writer = Callable[[Editor, ir.Node, ir.Value, FixedGrid], "ir.Value | None"]


def write_gates(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type in WRITERS and not n.domain]:
        source = node.inputs[0]
        grid = read_grid(source)
        if source is None or grid is None or not is_eight_bits(grid):
            continue
        made = WRITERS[node.op_type](editor, node, source, grid)
        if made is None:
            continue
        changes.append(Change(site(node), f"{node.op_type} written with operators that have integer kernels"))
        _replace(editor, node, made)
    return changes


def hard_sigmoid(editor: Editor, node: ir.Node, x: ir.Value, grid: FixedGrid) -> ir.Value | None:
    return _clamped(editor, node, x, grid, _number(node, "alpha", 0.2), _number(node, "beta", 0.5))


def hard_swish(editor: Editor, node: ir.Node, x: ir.Value, grid: FixedGrid) -> ir.Value | None:
    gate = _clamped(editor, node, x, grid, 1 / 6, 0.5)
    return None if gate is None else editor.node("Mul", [x, gate], f"{site(node)}_product", node)


def swish(editor: Editor, node: ir.Node, x: ir.Value, grid: FixedGrid) -> ir.Value | None:
    if _number(node, "alpha", 1.0) != 1:
        return None
    gate = editor.node("Sigmoid", [x], f"{site(node)}_sigmoid", node)
    gate = editor.round(gate, grid.on(1 / (grid.high - grid.low), grid.low), node)
    return editor.node("Mul", [x, gate], f"{site(node)}_product", node)


def tanh(editor: Editor, node: ir.Node, x: ir.Value, grid: FixedGrid) -> ir.Value | None:
    codes = _codes(x)
    if codes is None:
        return None
    twice = editor.dequantize(codes, grid.on(2 * float(grid.scale), int(grid.zero_point)), node)
    gate = editor.node("Sigmoid", [twice], f"{site(node)}_sigmoid", node)
    gate_codes = editor.quantize(gate, grid.on(1 / 254, grid.low), node)
    return editor.dequantize(gate_codes, grid.on(1 / 127, grid.low + 127), node)


WRITERS: dict[str, Writer] = {"HardSigmoid": hard_sigmoid, "HardSwish": hard_swish, "Swish": swish, "Tanh": tanh}


def _clamped(editor: Editor, node: ir.Node, x: ir.Value, grid: FixedGrid, a: float, b: float) -> ir.Value | None:
    """clamp(a x + b, 0, 1) by an addition between two grids."""
    if a <= 0 or b <= 0:
        return None
    span = grid.high - grid.low
    name = site(node)
    step = grid.on(b / a / span, grid.low)
    codes = editor.constant(np.array(grid.high, grid.zero_point.dtype), f"{name}_offset_codes")
    offset = editor.dequantize(codes, step, node)
    total = editor.node("Add", [x, offset], f"{name}_sum", node)
    gate = editor.quantize(total, grid.on(1 / a / span, grid.low), node)
    return editor.dequantize(gate, grid.on(1 / span, grid.low), node)


def _replace(editor: Editor, node: ir.Node, made: ir.Value) -> None:
    """Let the readers read what was made; quantizers of the old value, if it is on a grid already, are skipped."""
    old = node.outputs[0]
    if read_grid(made) is not None:
        for reader, _ in list(old.uses()):
            behind = [r for r, _ in reader.outputs[0].uses()] if reader.op_type == QUANTIZES else []
            if behind and all(r.op_type == DEQUANTIZES for r in behind):
                for again in behind:
                    if not again.outputs[0].is_graph_output():
                        editor.reroute(again.outputs[0], made)
    editor.reroute(old, made)
    editor.remove(node)


def _codes(x: ir.Value) -> ir.Value | None:
    maker = x.producer()
    return maker.inputs[0] if maker is not None else None


def _number(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.as_float())

"""Let the lowest code behind an activation stand for zero, so that the end of the grid does what the activation does.

    Relu -> q(scale, 0) s8          half of the codes are never used, and Relu stays an operator between layer and quantizer
    Relu -> q(scale / 2, -128)      the layer's kernel saturates at zero by itself

    new scale = largest value of the old grid / (2^bits - 1)

Grids of files made for hardware with symmetric values look like the first. What only moves the codes follows.

Needs:  a target whose values need no symmetric grid; codes that only DequantizeLinear reads.
Keeps:  every value within half a step of the old grid, mostly within half as much.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    MOVES,
    QUANTIZES,
    Change,
    Editor,
    FixedGrid,
    constant,
    grid_of,
    is_eight_bits,
    site,
)
from graphopt.targets import Target


def start_at_zero(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    if target.formats.codes.symmetric:
        return []
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type == QUANTIZES]:
        maker, grid = node.inputs[0].producer() if node.inputs[0] is not None else None, grid_of(node)
        if maker is None or grid is None or not is_eight_bits(grid) or not _starts_at_zero(maker):
            continue
        if int(grid.zero_point) == grid.low or (found := _same_codes(node, grid)) is None:
            continue
        finer = grid.on(grid.top / (grid.high - grid.low), grid.low)
        for other in found:
            name = site(other)
            other.replace_input_with(1, editor.constant(finer.scale, f"{name}_scale"))
            other.replace_input_with(2, editor.constant(finer.zero_point, f"{name}_zero_point"))
        changes.append(Change(site(maker), f"its grid begins at zero, in steps of {float(finer.scale):.4g}"))
    return changes


def _starts_at_zero(node: ir.Node) -> bool:
    """Whether no value of an activation is negative."""
    if node.op_type != "Clip":
        return bool(node.op_type == "Relu")
    low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if "min" in node.attributes:
        low = np.array(node.attributes["min"].as_float())
    return low is not None and not bool(np.any(low))


def _same_codes(node: ir.Node, grid: FixedGrid) -> list[ir.Node] | None:
    """The quantizers of this value, also behind what only moves it; None where codes are read by anything else."""
    found = [node]
    for reader, _ in node.outputs[0].uses():
        if reader.op_type != DEQUANTIZES or len(reader.inputs) < 3 or node.outputs[0].is_graph_output():
            return None
        found.append(reader)
        for move, index in reader.outputs[0].uses():
            behind = [n for out in move.outputs for n, _ in out.uses()] if move.op_type in MOVES and index == 0 else []
            for again in behind:
                if again.op_type == QUANTIZES and grid.same(grid_of(again)):
                    more = _same_codes(again, grid)
                    if more is None:
                        return None
                    found += more
    return found

"""Put quantizers around what only moves, bounds or averages values, on the grid that the values have anyway.

Integer kernels are found where quantizers stand on both sides. Where one side lacks them, its grid follows from the other:

    q/dq -> move -> float               the moved values lie on the input's grid: quantizing them again changes nothing
    float -> move -> q                  quantizing commutes with moving: the quantizer's grid holds in front of the move, too
    q/dq -> average -> float            an average lies within the range of what it averages
    q/dq -> Sigmoid, Softmax -> float   lies within [0, 1]

Keeps:  every value bit for bit, but averages, Sigmoid and Softmax: within half a step of their grid.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    MOVES,
    QUANTIZES,
    Change,
    Editor,
    FixedGrid,
    is_eight_bits,
    read_grid,
    site,
    written_grid,
)
from graphopt.targets import Target

AVERAGES = {"GlobalAveragePool", "AveragePool"}
UNIT = {"Sigmoid", "Softmax"}


def quantize_around_moves(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in reversed(list(model.graph)):  # upwards
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in MOVES or source is None or source.const_value is not None or len(node.outputs) != 1:
            continue
        grid, maker = written_grid(node.outputs[0]), source.producer()
        if grid is None or maker is None or maker.op_type in (DEQUANTIZES, "Constant"):
            continue
        editor.reroute(source, editor.round(source, grid, node), [(node, 0)])
        changes.append(Change(site(node), f"{node.op_type}: the quantizer behind it also in front"))
    for node in list(model.graph):  # downwards: what was quantized helps the next
        grid = _behind(node)
        if grid is None:
            continue
        reads = False
        for value in node.outputs:
            uses = [(r, i) for r, i in value.uses() if r.op_type != QUANTIZES]
            if uses:
                editor.reroute(value, editor.round(value, grid, _next(model, node)), uses)
                reads = True
        if reads:
            changes.append(Change(site(node), f"{node.op_type}: its result quantized to the grid it lies on"))
    return changes


def _behind(node: ir.Node) -> FixedGrid | None:
    """The grid for a node's result where it follows from that of its input."""
    if not node.inputs or not any(v.uses() for v in node.outputs):
        return None
    grid = read_grid(node.inputs[0])
    if grid is None or not is_eight_bits(grid):
        return None
    if node.op_type in MOVES | AVERAGES:
        return grid
    return grid.on(1 / (grid.high - grid.low), grid.low) if node.op_type in UNIT else None


def _next(model: ir.Model, node: ir.Node) -> ir.Node:
    """The node behind; a quantizer put in front of it can read this node."""
    nodes = list(model.graph)
    return nodes[nodes.index(node) + 1]

"""Let all operators that could compute in integer read the codes of a value, where some read its codes and others its floats.

    x -> q/dq -> a          x -> q/dq -> a
    x -> b                       q/dq -> b

Needs:  one grid of 8 bits that the value is quantized to.
Keeps:  what the others read within half a step of that grid, where it does not clip the value.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    LAYERS,
    MOVES,
    QUANTIZES,
    Change,
    Editor,
    constant,
    grid_of,
    is_eight_bits,
    site,
)
from graphopt.evaluation.compliance.rules import FAMILIES
from graphopt.targets import Target

TAKES_CODES = MOVES | LAYERS | set(FAMILIES) | {"ReduceMean", "HardSwish", "Swish", "Tanh"}


def share_codes(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    for value in values:
        uses = list(value.uses())
        quantizers = [node for node, _ in uses if node.op_type == QUANTIZES]
        others = [(n, i) for n, i in uses if n.op_type in TAKES_CODES and not (n.op_type in LAYERS and i > 0)]
        if not quantizers or not others or constant(value) is not None:
            continue
        grid = grid_of(quantizers[0])
        if grid is None or not is_eight_bits(grid) or any(not grid.same(grid_of(q)) for q in quantizers):
            continue
        read = editor.dequantize(quantizers[0].outputs[0], grid, _first(model, others, quantizers[0]))
        read.shape, read.type = value.shape, value.type
        editor.reroute(value, read, others)
        changes += [Change(site(node), f"reads the codes of {value.name}, as others do") for node, _ in others]
    return changes


def _first(model: ir.Model, uses: list[tuple[ir.Node, int]], quantizer: ir.Node) -> ir.Node:
    """The first of the readers, with the quantizer moved in front of it where it stands behind."""
    order = {node: place for place, node in enumerate(model.graph)}
    first = min((node for node, _ in uses), key=order.__getitem__)
    if order[quantizer] > order[first]:
        model.graph.remove(quantizer)
        model.graph.insert_before(first, quantizer)
    return first

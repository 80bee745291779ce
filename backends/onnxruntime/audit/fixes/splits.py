"""Take away a quantizer between a layer and the activation behind it: the two are one integer kernel.

    layer -> q/dq -> Relu -> q        layer -> Relu -> q

Needs:  nothing else reads the layer's result; the grid behind ends where the one between does, or before, so that saturation
        stays what it was.
Keeps:  values within half a step of the quantizer taken away; they are rounded once less.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    LAYERS,
    QUANTIZES,
    Change,
    Editor,
    read_grid,
    site,
    written_grid,
)
from graphopt.targets import Target


def join_activations(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type in ("Relu", "Clip")]:
        reads = _only_behind(node.inputs[0], DEQUANTIZES)
        writes = _only_behind(reads.inputs[0], QUANTIZES) if reads is not None else None
        if writes is None or (layer := _only_behind(writes.inputs[0], *LAYERS, "Add")) is None:
            continue
        between, behind = read_grid(node.inputs[0]), written_grid(node.outputs[0])
        if between is None or behind is None or behind.top > between.top + float(between.scale):
            continue
        changes.append(Change(site(node), f"not quantized between {layer.op_type} and {node.op_type}"))
        editor.reroute(node.inputs[0], layer.outputs[0], [(node, 0)])
    return changes


def _only_behind(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """What made a value, if it is one of these and the value has one reader."""
    maker = value.producer() if value is not None else None
    if (
        value is None
        or maker is None
        or maker.op_type not in kinds
        or len(value.uses()) != 1
        or value.is_graph_output()
    ):
        return None
    return maker

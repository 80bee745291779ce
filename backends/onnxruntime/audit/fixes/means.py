"""Write means over whole images as GlobalAveragePool, which has an integer kernel; ReduceMean has none.

    ReduceMean(x, axes of the image)  =  GlobalAveragePool(x)           then Flatten where the axes were dropped

Needs:  x: [N, C, H, W] (or other image ranks), the mean over all of H, W.
Keeps:  every value, up to the order of additions.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import Change, Editor, constant, site
from graphopt.targets import Target


def pool_means(model: ir.Model, target: Target) -> list[Change]:
    """See above."""
    changes, editor = [], Editor(model)
    for node in [n for n in model.graph if n.op_type == "ReduceMean"]:
        source, shape = node.inputs[0], node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or shape is None or len(shape) < 3:
            continue
        axes = _axes(node)
        if axes is None or sorted(a % len(shape) for a in axes) != list(range(2, len(shape))):
            continue
        pooled = editor.node("GlobalAveragePool", [source], f"{site(node)}_pool", node)
        keep = node.attributes.get("keepdims")
        if keep is not None and not keep.as_int():
            pooled = editor.node("Flatten", [pooled], f"{site(node)}_flatten", node, attributes={"axis": 1})
        changes.append(Change(site(node), "ReduceMean written as GlobalAveragePool"))
        editor.reroute(node.outputs[0], pooled)
        editor.remove(node)
    return changes


def _axes(node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return [int(a) for a in node.attributes["axes"].as_ints()]
    found = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if found is None else [int(a) for a in found.reshape(-1)]

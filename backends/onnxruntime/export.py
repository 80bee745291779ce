"""A deployed graph as an ONNX model.

The opset is the oldest that holds the graph, for reach: 18; 20 where there is GELU, an operator since then; 21 where 16-bit
codes are used.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch

from graphopt.backends.onnxruntime.emit import write
from graphopt.backends.onnxruntime.float16 import compute_in_half
from graphopt.backends.onnxruntime.legalize import legalize
from graphopt.backends.onnxruntime.surgery import fold_pads
from graphopt.ir import sizes
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.shapes import label


def to_onnx(graph: Graph, *, plain: bool = False) -> tuple[ir.Model, list[str]]:
    """Translate a deployed graph; `plain`: without arithmetic on codes, for compilers other than ONNX Runtime.

    Returns:
        A model with the graph's own names of inputs, outputs and free sizes; site and operator of the calls that torch's exporter
        wrote, because there is no rule for them.

    Raises:
        GraphoptError: an operator cannot be written; names it.
    """
    prepared = graph.clone(share_weights=True)
    legalize(prepared, plain=plain)
    compute_in_half(prepared)
    wide = any(torch.int16 in n.args or torch.uint16 in n.args for n in prepared.calls())
    version = 21 if wide else 20 if prepared.calls(aten.gelu.default) else 18
    model, exported = write(prepared, version)
    fold_pads(model)
    common.RemoveUnusedNodesPass()(model)
    _name_sizes(model, graph)
    return model, [f"{prepared.site(node)} ({node.target})" for node in exported]


def _name_sizes(model: ir.Model, graph: Graph) -> None:
    """Call the free sizes in inputs and outputs by their names, as in `height` and `2*height - 2`."""
    inputs = sizes.labels(graph.free_sizes, [t.shape for t in graph.example.tensors()])
    names = graph.size_names
    outputs = [[label(s, names) or int(s) for s in node.meta["val"].shape] for node in graph.outputs]
    pairs = [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]
    for value, shape in pairs:
        value.shape = ir.Shape([ir.SymbolicDim(s) if isinstance(s, str) else s for s in shape])

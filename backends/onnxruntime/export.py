"""A deployed graph as an ONNX model.

The opset is the oldest in which every operator that was written means what it does, and the version of the file format
(`ir_version`) the oldest for that opset: what old runtimes load. Operators are written as of opset 18; of 20 where there is GELU,
an operator since then; of 21 where 16-bit codes are used. A target may say which opset is the newest that its runtime reads.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch

from graphopt.analysis.gates import gates
from graphopt.backends.onnxruntime.conditional import compute_as_needed
from graphopt.backends.onnxruntime.emit import write
from graphopt.backends.onnxruntime.float16 import compute_in_half
from graphopt.backends.onnxruntime.legalize import legalize
from graphopt.backends.onnxruntime.residuals import keep_sums_apart
from graphopt.backends.onnxruntime.surgery import fold_pads
from graphopt.ir import sizes
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.shapes import label
from graphopt.lowering.names import value_names
from graphopt.utils.errors import InputError

SHOWN = 5  # operators that an error lists
OLDEST = 13  # QuantizeLinear per channel; files of older opsets are of no use to anyone


def to_onnx(graph: Graph, *, plain: bool = False, newest: int | None = None) -> tuple[ir.Model, list[str]]:
    """Translate a deployed graph.

    Args:
        plain: without arithmetic on codes, for compilers other than ONNX Runtime.
        newest: the newest opset that the runtime reads; None: any.

    Returns:
        A model with the graph's own names of inputs, outputs and free sizes; site and operator of the calls that torch's exporter
        wrote, because there is no rule for them.

    Raises:
        GraphoptError: an operator cannot be written; names it. InputError: an operator needs a newer opset; names it.
    """
    prepared = graph.clone(share_weights=True)
    legalize(prepared, plain=plain)
    compute_in_half(prepared)
    wide = any(torch.int16 in n.args or torch.uint16 in n.args for n in prepared.calls())
    version = 21 if wide else 20 if prepared.calls(aten.gelu.default) else 18
    model, exported = write(prepared, version)
    names = value_names(prepared)
    fold_pads(model)
    if not plain:
        keep_sums_apart(model)
        compute_as_needed(model, [names[gate.select] for gate in gates(prepared) if gate.channels == 1])
    common.RemoveUnusedNodesPass()(model)
    _name_sizes(model, graph)
    _set_opset(model, newest)
    return model, [f"{prepared.site(node)} ({node.target})" for node in exported]


def _set_opset(model: ir.Model, newest: int | None) -> None:
    """Declare the oldest opset that has the model's operators as they are written."""
    written = model.graph.opset_imports[""]
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if not node.domain]
    since = {node: onnx.defs.get_schema(node.op_type, written, "").since_version for node in nodes}
    opset = max([OLDEST, *since.values()])
    if newest is not None and opset > newest:
        late = [f"{node.name} ({node.op_type}, opset {n})" for node, n in since.items() if n > newest]
        more = f" and {len(late) - SHOWN} more" if len(late) > SHOWN else ""
        raise InputError(
            f"the target's runtime reads ONNX up to opset {newest}, and the graph needs opset {opset}: "
            f"{', '.join(late[:SHOWN])}{more}; compute that otherwise, use codes of 8 bits, or say that "
            "the runtime is newer with find(target).replace(opset=...)"
        )
    model.graph.opset_imports[""] = opset
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    model.ir_version = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)


def _name_sizes(model: ir.Model, graph: Graph) -> None:
    """Call the free sizes in inputs and outputs by their names, as in `height` and `2*height - 2`."""
    inputs = sizes.labels(graph.free_sizes, [t.shape for t in graph.example.tensors()])
    names = graph.size_names
    outputs = [[label(s, names) or int(s) for s in node.meta["val"].shape] for node in graph.outputs]
    pairs = [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]
    for value, shape in pairs:
        value.shape = ir.Shape([ir.SymbolicDim(s) if isinstance(s, str) else s for s in shape])

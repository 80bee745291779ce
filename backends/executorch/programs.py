"""From a graph in XNNPACK's form to a program of `torch.export`, in the patterns that ExecuTorch's partitioner looks for.

    codes = quantize(v)              v = dequantize(codes) once for each reader: what one reader is fused with is not another's
    quantize(conv(x)), few codes     quantize(clip(conv(x))), the clip to the ends of the codes: fused into the kernel
    quantize(add(a, b)), few codes   the clip of codes behind: quantize, dequantize, clip, quantize
    pad between codes, before conv   the pad alone, which the kernel then reads as codes
    bias                             float: the library rounds it to its grid again
    other dequantized constants      float

Nothing here needs ExecuTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.fx.node import Node

from graphopt.backends.executorch.form import HIGH, JOINS, LOW
from graphopt.backends.executorch.operators import write_plainly
from graphopt.ir.calls import argument, operand, shape
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family
from graphopt.lowering.integers.arithmetic import f32
from graphopt.lowering.integers.fusion import DEQUANTIZE, QUANTIZE, quantizer
from graphopt.lowering.integers.legalize import is_dequantized
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.utils.alone import ALONE


def exported(graph: Graph, watched: Mapping[str, Node] | None = None) -> tuple[ExportedProgram, Graph]:
    """The program of a graph in XNNPACK's form with fixed shapes; the graph is not changed.

    Args:
        watched: names -> nodes of codes that the program returns behind the graph's own outputs.

    Returns:
        The program, and the graph that it was exported from, whose calls have the names that the program knows them by.
    """
    prepared = graph.clone(share_weights=True)
    nodes = dict(zip(graph.nodes, prepared.nodes, strict=True))
    returned = [nodes[node] for node in (watched or {}).values()]
    write_plainly(prepared)
    if not returned:
        _fuse_pads(prepared)
    _fold_constants(prepared)
    _clip_values(prepared)
    _dequantize_for_each(prepared)
    _return(prepared, returned)
    prepared.refresh()
    with ALONE:
        return prepared.export(), prepared


def _fuse_pads(graph: Graph) -> None:
    """dequantize -> pad -> quantize -> dequantize -> conv, all on one grid: without the pair in between."""
    for node in graph.calls():
        reader = quantizer(node)
        if family(node) != "pad" or reader is None or not is_dequantized(operand(node)):
            continue
        values = list(reader.users)
        image = len(shape(node)) == 4 and len(argument(node, "pad")) <= 4 and min(argument(node, "pad")) >= 0
        convs = all(value.target is DEQUANTIZE and _only_convs(value) for value in values)
        if image and convs and len(values) == 1 and operand(node).args[1:3] == reader.args[1:3]:
            padded = graph.call(
                aten.constant_pad_nd.default, operand(node), argument(node, "pad"), before=node, like=node
            )
            padded.meta["val"] = node.meta["val"]
            graph.replace(values[0], padded)


def _only_convs(value: Node) -> bool:
    return len(value.users) == 1 and all(family(reader) == "conv" and is_integer(reader) for reader in value.users)


def is_integer(layer: Node) -> bool:
    """Whether a layer of a graph in XNNPACK's form multiplies codes."""
    return is_dequantized(layer.args[1])


def _fold_constants(graph: Graph) -> None:
    """Dequantize constants now: all but the weights of integer layers, and operands of integer sums and products."""
    for node in graph.calls():
        if not is_dequantized(node) or not graph.is_constant(operand(node)):
            continue
        for reader in list(node.users):
            layer = Layer.of(reader)
            weight = layer is not None and layer.weight is node
            joined = family(reader) in JOINS and node.target is DEQUANTIZE
            if not weight and not joined:
                name = f"{operand(node).target}_value"
                constant = graph.add_constant(name, graph.tensor(node), before=node)
                reader.replace_input_with(node, constant)


def _clip_values(graph: Graph) -> None:
    """Clips in place of quantizers with fewer codes than a byte has: before rounding, where a layer or float value is clipped."""
    for node in graph.calls(QUANTIZE):
        source, grid = operand(node), QuantizationParameters.of(node)
        whole = grid._replace(quant_min=LOW, quant_max=HIGH)
        node.args = (source, *whole)
        if (grid.quant_min, grid.quant_max) == (LOW, HIGH):
            continue
        ends = [float((f32(code) - grid.zero_point) * f32(grid.scale)) for code in (grid.quant_min, grid.quant_max)]
        relu = grid.quant_max == HIGH and grid.quant_min == grid.zero_point
        fused = Layer.of(source) is not None or not any(map(is_dequantized, source.all_input_nodes))
        if not fused and not is_dequantized(source) and not (relu and family(source) == "add"):
            codes = graph.call(QUANTIZE, source, *whole, before=node)
            source = graph.call(DEQUANTIZE, codes, *whole, before=node)
        target: Any = aten.relu.default if relu else aten.hardtanh.default
        node.update_arg(0, graph.call(target, source, *([] if relu else ends), before=node, like=source))


def _dequantize_for_each(graph: Graph) -> None:
    for node in graph.calls(DEQUANTIZE):
        for reader in list(node.users)[1:]:
            reader.replace_input_with(node, graph.call(DEQUANTIZE, *node.args, before=node, like=node))
    for node in graph.calls(DEQUANTIZE):
        node.args = (node.args[0], *QuantizationParameters.of(node)._replace(quant_min=LOW, quant_max=HIGH))


def _return(graph: Graph, nodes: list[Node]) -> None:
    """Return these codes, too."""
    if not nodes:
        return
    graph.output.args = ((*graph.outputs, *nodes),)

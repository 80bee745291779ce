"""Put quantizers where nobody recorded a range, on ranges measured on calibration data.

    scale = (max - min) / (2^bits - 1)          min <= 0 <= max, the least and largest value seen

Values that operators with integer kernels read or make and that lie on no grid get one; between a layer and the activation fused
into it there is none, and none behind a linear layer whose answer leaves the model. This is the simplest of calibrations:
`graphopt.optimize` on the trained model knows better ones.

Needs:  data.
Keeps:  values within half a step of their range.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.backends.onnxruntime.audit.fixes.edit import (
    DEQUANTIZES,
    QUANTIZES,
    Change,
    Editor,
    FixedGrid,
    constant,
    site,
)
from graphopt.backends.onnxruntime.audit.work import Feeds, values
from graphopt.evaluation.compliance.model import ACTIVATIONS, LAYERS
from graphopt.evaluation.compliance.rules import FAMILIES
from graphopt.formats import SMALLEST_SCALE
from graphopt.targets import Target
from graphopt.utils.progress import track


def measure_ranges(model: ir.Model, target: Target, batches: Iterable[Feeds]) -> list[Change]:
    """See above; `batches` are inputs by name."""
    wanted = [value for value in _values(model) if _lacks(value, target.kernels.integer)]
    names = [str(value.name) for value in wanted]
    if not names:
        return []
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        ir.save(model, Path(folder) / "model.onnx")
        for feeds in track(batches, "measuring ranges"):
            for name, value in values(Path(folder) / "model.onnx", names, feeds).items():
                low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
    codes = target.formats.codes
    editor, dtype, changes = Editor(model), _code_type(model, codes.signed), []
    for value, name in zip(wanted, names, strict=True):
        grid = _grid(low[name], high[name], dtype, codes.symmetric)
        maker = value.producer()
        node = next(iter(model.graph)) if maker is None else _behind(model, maker)
        uses = [(n, i) for n, i in value.uses() if n.op_type != QUANTIZES]
        rounded = editor.round(value, grid, node)
        if value.is_graph_output():
            keep = [(n, i) for n, i in value.uses() if n.outputs[0] is not rounded and n.op_type == QUANTIZES]
            editor.reroute(value, rounded)
            for n, i in [*keep, (_quantizer(rounded), 0)]:
                n.replace_input_with(i, value)
        else:
            editor.reroute(value, rounded, uses)
        where = site(maker) if maker is not None else name
        changes.append(Change(where, f"quantized to [{low[name]:.4g}, {high[name]:.4g}], as measured"))
    return changes


def _values(model: ir.Model) -> list[ir.Value]:
    """Of the model, in order."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return [*inputs, *(out for node in model.graph for out in node.outputs)]


def _lacks(value: ir.Value, integer: Collection[str]) -> bool:
    """Whether integer kernels need a grid that a value does not have."""
    maker = value.producer()
    if maker is not None and maker.op_type in (DEQUANTIZES, QUANTIZES, "Constant", "Shape"):
        return False
    if value.dtype not in (None, ir.DataType.FLOAT) or constant(value) is not None:
        return False
    readers = [(node, index) for node, index in value.uses()]
    if all(node.op_type == QUANTIZES for node, _ in readers) and not value.is_graph_output():
        return False
    fused = len(readers) == 1 and readers[0][0].op_type in ACTIVATIONS
    if maker is not None and fused and maker.op_type in LAYERS | {"Add": 0}:
        return False
    source = (
        maker.inputs[0].producer() if maker is not None and maker.op_type in ACTIVATIONS and maker.inputs[0] else maker
    )
    made = source is not None and _has_kernel(source, integer)
    if not readers and source is not None and source.op_type in ("Gemm", "MatMul"):
        return False
    return made or any(
        _has_kernel(node, integer) and (node.op_type not in LAYERS or index == 0) for node, index in readers
    )


def _has_kernel(node: ir.Node, integer: Collection[str]) -> bool:
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        weight = node.inputs[1].producer() if node.inputs[1] is not None else None
        return constant(node.inputs[1]) is not None or (weight is not None and constant(weight.inputs[0]) is not None)
    return FAMILIES.get(node.op_type) in integer


def _code_type(model: ir.Model, signed: bool) -> np.dtype[np.generic]:
    """The codes that the file has already, or those of the target."""
    types = [constant(n.inputs[2]) for n in model.graph if n.op_type == QUANTIZES and len(n.inputs) > 2]
    known = [t.dtype for t in types if t is not None and t.dtype.itemsize == 1]
    return max(set(known), key=known.count) if known else np.dtype(np.int8 if signed else np.uint8)


def _grid(low: float, high: float, dtype: np.dtype[np.generic], symmetric: bool) -> FixedGrid:
    info = np.iinfo(dtype)  # type: ignore[type-var]
    if symmetric:
        scale, point = max(-low, high) / info.max, 0 if info.min < 0 else 128
    else:
        scale = (high - low) / (info.max - info.min)
        point = 0
    scale = max(scale, SMALLEST_SCALE) if scale else 1.0
    if not symmetric:
        point = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
    return FixedGrid(np.array(scale, np.float32), np.array(point, dtype))


def _behind(model: ir.Model, maker: ir.Node) -> ir.Node | None:
    nodes = list(model.graph)
    place = nodes.index(maker) + 1
    return nodes[place] if place < len(nodes) else None


def _quantizer(rounded: ir.Value) -> ir.Node:
    maker = rounded.producer()
    assert maker is not None
    quantizer = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    assert quantizer is not None
    return quantizer

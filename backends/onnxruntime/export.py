"""A deployed graph as an ONNX model, written by torch's exporter with our own translations for quantizers.

The opset is the oldest that holds the graph, for reach: 18; 20 where there is GELU, an operator since then; 21 where 16-bit
codes are used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from onnxscript import opset18, opset20, opset21
from onnxscript.optimizer import fold_constants

from graphopt.backends.onnxruntime.arguments import write_out_arguments
from graphopt.backends.onnxruntime.float16 import compute_in_half
from graphopt.backends.onnxruntime.legalize import legalize
from graphopt.backends.onnxruntime.nbits import MATMUL_BLOCKS, translate
from graphopt.backends.onnxruntime.surgery import drop_zero_biases, fold_pads, write_out_ceil_mode
from graphopt.ir import sizes
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.ir.program import to_exported_program
from graphopt.ir.shapes import label
from graphopt.lowering.integers.legalize import CLIP_CODES, GLOBAL_AVERAGE_POOL
from graphopt.lowering.qdq import Q
from graphopt.utils.alone import ALONE

KEPT = ("QuantizeLinear", "DequantizeLinear")
_NUMPY = {
    torch.int8: np.int8, torch.uint8: np.uint8, torch.int16: np.int16, torch.uint16: np.uint16, torch.int32: np.int32,
}  # fmt: skip


def to_onnx(graph: Graph, *, plain: bool = False) -> ir.Model:
    """Translate a deployed graph; `plain`: without arithmetic on codes, for compilers other than ONNX Runtime.

    Returns:
        A model with the graph's own names of inputs, outputs and free sizes.
    """
    prepared = graph.clone(share_weights=True)
    write_out_arguments(prepared)
    legalize(prepared, plain=plain)
    compute_in_half(prepared)
    wide = any(torch.int16 in n.args or torch.uint16 in n.args for n in prepared.calls())
    version = 21 if wide else 20 if prepared.calls(aten.gelu.default) else 18
    with ALONE, _quiet():
        program = to_exported_program(prepared)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=False,
            opset_version=version,
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            custom_translation_table=_translations({18: opset18, 20: opset20, 21: opset21}[version]),
        )
    assert exported is not None
    model = exported.model
    _tidy(model)
    drop_zero_biases(model)
    fold_pads(model)
    write_out_ceil_mode(model)
    common.RemoveUnusedNodesPass()(model)
    _name_sizes(model, graph)
    return model


def _translations(op: Any) -> dict[Any, Any]:
    def constant(value: Any, dtype: Any) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(value, dtype=dtype)))

    def quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        kind: Any = _NUMPY[_torch_dtype(dtype)]
        codes = op.QuantizeLinear(x, constant(scale, np.float32), constant(zero_point, kind))
        info = np.iinfo(kind)
        if (quant_min, quant_max) == (info.min, info.max):
            return codes
        return op.Clip(codes, constant(quant_min, kind), constant(quant_max, kind))  # fewer bits than the storage has

    def dequantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any, **_: Any) -> Any:
        return op.DequantizeLinear(x, constant(scale, np.float32), constant(zero_point, _NUMPY[_torch_dtype(dtype)]))

    def dequantize_channels(
        x: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int, dtype: Any, **_: Any
    ) -> Any:
        kind = _NUMPY[_torch_dtype(dtype)]
        return op.DequantizeLinear(x, scale, op.Cast(zero_point, to=ir.DataType.from_numpy(np.dtype(kind))), axis=axis)

    def clip(codes: Any, low: int, high: int) -> Any:
        kind: Any = codes.dtype.numpy()
        return op.Clip(codes, constant(low, kind), constant(high, kind))

    def pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    return {
        Q.quantize_per_tensor.default: quantize,
        Q.dequantize_per_tensor.default: dequantize,
        Q.dequantize_per_channel.default: dequantize_channels,
        CLIP_CODES: clip,
        GLOBAL_AVERAGE_POOL: pool,
        MATMUL_BLOCKS: translate,
    }


def _torch_dtype(value: Any) -> torch.dtype:
    """The exporter hands over ONNX type numbers."""
    if isinstance(value, torch.dtype):
        return value
    numpy = np.dtype(ir.DataType(value).numpy())
    return next(t for t, n in _NUMPY.items() if np.dtype(n) == numpy)


def _tidy(model: ir.Model) -> None:
    """Constants computed and stored once, as initializers; nothing unused. Integer weights stay integer."""
    fold_constants(model, onnx_shape_inference=False, should_fold=lambda n: False if n.op_type in KEPT else None)
    for transform in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        transform(model)


def _name_sizes(model: ir.Model, graph: Graph) -> None:
    """Call the free sizes in inputs and outputs by their names, as in `height` and `2*height - 2`."""
    inputs = sizes.labels(graph.free_sizes, [t.shape for t in graph.example.tensors()])
    names = graph.size_names
    outputs = [[label(s, names) or int(s) for s in node.meta["val"].shape] for node in graph.outputs]
    pairs = [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]
    for value, shape in pairs:
        value.shape = ir.Shape([ir.SymbolicDim(s) if isinstance(s, str) else s for s in shape])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on standard output and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

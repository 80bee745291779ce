"""Small quantized ONNX files, put together by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
STEP = 1 / 97  # of weights; an odd divisor, so that no sum on grids of one scale lies halfway between two codes


class File:
    """An ONNX file under construction. Methods return names of values; codes are signed unless said.

    Weights have 7 bits unless said, so that answers are the same on CPUs with and without VNNI.
    """

    def __init__(self, *shape: int | str, dtype: Any = np.int8, opset: int = 21, weight_bits: int = 7) -> None:
        self.shape, self.dtype, self.opset, self.weight_bits = shape, dtype, opset, weight_bits
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.generator = np.random.default_rng(0)

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def random(self, *shape: int) -> Any:
        return self.generator.standard_normal(shape)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def quantize(self, value: str, scale: float = 0.03, zero: int | None = None, dtype: Any = None) -> str:
        return self.op("QuantizeLinear", value, *self._grid(scale, zero, dtype))

    def dequantize(self, codes: str, scale: float = 0.03, zero: int | None = None, dtype: Any = None) -> str:
        return self.op("DequantizeLinear", codes, *self._grid(scale, zero, dtype))

    def on_grid(self, value: str, scale: float = 0.03, zero: int | None = None, dtype: Any = None) -> str:
        return self.dequantize(self.quantize(value, scale, zero, dtype), scale, zero, dtype)

    def weight(self, *shape: int, axis: int | None = None, scale: float = STEP) -> str:
        end = 2 ** (self.weight_bits - 1)
        codes = self.constant(self.generator.integers(1 - end, end, shape), np.int8)
        if axis is None:
            return self.op("DequantizeLinear", codes, self.constant(scale), self.constant(0, np.int8))
        scales = scale * (1 + np.arange(shape[axis]) / shape[axis])
        zeros = self.constant(np.zeros(shape[axis]), np.int8)
        return self.op("DequantizeLinear", codes, self.constant(scales), zeros, axis=axis)

    def bias(self, length: int, scale: float = 0.03 * STEP) -> str:
        codes = self.constant(self.generator.integers(-1000, 1000, length), np.int32)
        return self.op("DequantizeLinear", codes, self.constant(scale), self.constant(0, np.int32))

    def conv(self, value: str, inputs: int = 4, outputs: int = 4, step: float = STEP) -> str:
        """A 3x3 convolution of padded images."""
        weight, bias = self.weight(outputs, inputs, 3, 3, scale=step), self.bias(outputs, 0.03 * step)
        return self.op("Conv", value, weight, bias, pads=[1, 1, 1, 1])

    def save(self, path: Path, *outputs: str) -> Path:
        model = helper.make_model(
            helper.make_graph(
                self.nodes,
                "planted",
                [helper.make_tensor_value_info("x", FLOAT, self.shape)],
                [onnx.ValueInfoProto(name=name) for name in outputs],
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        for output in model.graph.output:
            output.type.tensor_type.elem_type = FLOAT
        onnx.save(model, path)
        return path

    def _grid(self, scale: float, zero: int | None, dtype: Any) -> tuple[str, str]:
        dtype = dtype or self.dtype
        middle = 0 if np.iinfo(dtype).min < 0 else (np.iinfo(dtype).max + 1) // 2
        return self.constant(scale), self.constant(middle if zero is None else zero, dtype)


# ---- Bodies: what is between input and output of a file, as functions of the value they begin with ----------------

Body = Callable[[File, str], str]


def residual(f: File, x: str) -> str:
    y = f.on_grid(f.conv(x))
    return f.on_grid(f.op("Add", y, f.on_grid(f.conv(y))), 0.06)


def dropped_mean(f: File, x: str) -> str:
    mean = f.op("ReduceMean", f.on_grid(f.conv(x)), f.constant([-1, -2], np.int64), keepdims=0)
    return f.on_grid(f.op("Gemm", f.on_grid(mean, 0.01), f.weight(4, 5), f.bias(5, 1e-4)))


def after_conv(kind: str, scale: float = 0.02, **attributes: Any) -> Body:
    return lambda f, x: f.on_grid(f.conv(f.on_grid(f.op(kind, f.on_grid(f.conv(x)), **attributes), scale)))


def symmetric_relu(f: File, x: str) -> str:
    relu = f.on_grid(f.op("Relu", f.conv(x)))
    return f.on_grid(f.conv(f.on_grid(f.op("MaxPool", relu, kernel_shape=[2, 2]))), 0.06)

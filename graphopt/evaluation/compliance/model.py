"""An ONNX model as its checker sees it: nodes with names, who makes and who reads a value, and the grids values lie on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from graphopt.artifacts.artifact import Artifact
from graphopt.utils.errors import InputError

Source: TypeAlias = "str | Path | Artifact | onnx.ModelProto"
FILE = "model.onnx"  # in the folder of a deployed model
LAYERS = {
    "Conv": 0,
    "ConvTranspose": 1,
    "Gemm": 0,
    "MatMul": -1,
}  # operator -> the weight's dimension of output channels
ACTIVATIONS = {"Relu", "Clip"}  # what integer kernels fuse behind a layer or a sum


class DeclaredGrid(NamedTuple):
    """What DequantizeLinear or QuantizeLinear says of a value.

    Attributes:
        node: its name. dtype: of the codes.
        scale, zero_point: constants; None where they are computed at run time.
        axis: the dimension they run along. block: elements of it to each; 0: one.
        codes: where they are constant.
    """

    node: str
    dtype: np.dtype[Any]
    scale: np.ndarray[Any, Any] | None
    zero_point: np.ndarray[Any, Any] | None
    axis: int
    block: int
    codes: np.ndarray[Any, Any] | None

    @property
    def per_channel(self) -> bool:
        return self.scale is not None and self.scale.size > 1

    def same(self, other: DeclaredGrid) -> bool:
        """Whether both have the same codes for the same values."""
        if self.scale is None or other.scale is None or self.zero_point is None or other.zero_point is None:
            return False
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass
class Model:
    """See above. Subgraphs (of If and Loop) are not looked into.

    Attributes:
        opset: of ONNX's own operators.
        constants: initializers and Constant nodes by name.
        makers, readers: of a value.
    """

    graph: onnx.GraphProto
    opset: int
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Source) -> Model:
        """Load a model; see `check`."""
        proto = source if isinstance(source, onnx.ModelProto) else _load(source)
        opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
        model = cls(proto.graph, opset)
        for tensor in proto.graph.initializer:
            model.constants[tensor.name] = numpy_helper.to_array(tensor)
        for number, node in enumerate(proto.graph.node):
            model.names[id(node)] = node.name or f"{node.op_type} number {number} ({', '.join(node.output)})"
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                model.constants[node.output[0]] = numpy_helper.to_array(value)
            for name in node.output:
                model.makers[name] = node
            for name in node.input:
                model.readers.setdefault(name, []).append(node)
        return model

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.graph.node)

    def name(self, node: onnx.NodeProto) -> str:
        return self.names[id(node)]

    def maker(self, value: str) -> onnx.NodeProto | None:
        return self.makers.get(value)

    def layers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in LAYERS)

    def is_weight(self, value: str) -> bool:
        """Whether a value is made of constants alone: a weight, quantized or not."""
        if value in self.constants:
            return True
        maker = self.maker(value)
        chain = maker is not None and maker.op_type in ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape")
        return chain and maker is not None and self.is_weight(maker.input[0])

    def grid(self, value: str) -> DeclaredGrid | None:
        """The grid that a value was dequantized from; None for float values."""
        maker = self.maker(value)
        return self.grid_of(maker) if maker is not None and maker.op_type == "DequantizeLinear" else None

    def grid_of(self, node: onnx.NodeProto) -> DeclaredGrid:
        """The grid of a QuantizeLinear or DequantizeLinear node."""
        scale = self.constants.get(node.input[1])
        codes = self.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if len(node.input) > 2 and node.input[2]:
            zero = self.constants.get(node.input[2])
            dtype = np.dtype(np.uint8) if zero is None else zero.dtype
        else:
            dtype = np.dtype(np.uint8) if codes is None else codes.dtype
            zero = np.zeros(() if scale is None else scale.shape, dtype)
        axis = attribute(node, "axis")
        return DeclaredGrid(
            self.name(node), dtype, scale, zero, 1 if axis is None else axis, attribute(node, "block_size") or 0, codes
        )

    def behind(self, node: onnx.NodeProto, *, sums: bool = False) -> list[onnx.NodeProto]:
        """Who reads a layer's result, behind the activation that is fused into it, and with `sums` the sum, too."""
        found = []
        for reader in self.readers.get(node.output[0], []):
            through = reader.op_type in ACTIVATIONS or (sums and self.summed(reader) is node)
            found += self.behind(reader, sums=sums) if through else [reader]
        return found

    def summed(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The layer whose unrounded result, which nothing else reads, a sum adds to codes."""
        if node.op_type != "Add":
            return None
        makers = [self.maker(value) for value in node.input if self.grid(value) is None]
        if len(makers) != 1 or makers[0] is None or makers[0].op_type not in LAYERS:
            return None
        return makers[0] if len(self.readers[makers[0].output[0]]) == 1 else None

    def rounded_layer(self, value: str) -> onnx.NodeProto | None:
        """The layer whose result, read by nothing else, is rounded to what this value is dequantized from."""
        dequantize = self.maker(value)
        quantize = self.maker(dequantize.input[0]) if dequantize is not None and self.grid(value) is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return None
        layer = self.maker(quantize.input[0])
        alone = all(len(self.readers[node.output[0]]) == 1 for node in (dequantize, quantize) if node is not None)
        return layer if layer is not None and layer.op_type in LAYERS and alone else None

    def between_codes(self, node: onnx.NodeProto, *, sums: bool = False) -> bool:
        """Whether a node reads codes only, and its result, or that of what is fused behind it, becomes codes or the answer."""
        codes = any(reader.op_type == "QuantizeLinear" for reader in self.behind(node, sums=sums))
        fused = sums and self.summed(node) is not None
        return (fused or self.reads_codes(node)) and (codes or self.leaves(node))

    def reads_codes(self, node: onnx.NodeProto) -> bool:
        """Whether both factors of a layer, or both operands, are dequantized."""
        into = [self.grid(value) for value in node.input[:2] if value and value not in self.constants]
        return bool(into) and all(grid is not None for grid in into)

    def moved_grid(self, value: str) -> DeclaredGrid | None:
        """The grid of a value in front of what only moves it."""
        maker = self.maker(value)
        while maker is not None and maker.op_type in ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"):
            value = maker.input[0]
            maker = self.maker(value)
        return self.grid(value)

    def leaves(self, node: onnx.NodeProto) -> bool:
        """Whether a node's result, or that of the activation behind it, is an output of the model."""
        outputs = {output.name for output in self.graph.output}
        results = [node.output[0]]
        results += [r.output[0] for r in self.readers.get(node.output[0], []) if r.op_type in ACTIVATIONS]
        return bool(outputs.intersection(results))


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute's value; None where the node has none."""
    found = next((a for a in node.attribute if a.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def _load(source: str | Path | Artifact) -> onnx.ModelProto:
    path = source.folder if isinstance(source, Artifact) else Path(source)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there is no ONNX model {path}")
    try:
        return onnx.load(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} is no ONNX model, or a file beside it is missing: {error}") from error

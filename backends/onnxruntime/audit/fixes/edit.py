"""What rewrites of a quantized ONNX file share: constants, grids of values, and putting quantizers in.

A *grid* is what DequantizeLinear says of a value: value = (code - zero_point) * scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.ir.passes import Change

Array = np.ndarray[Any, Any]
QUANTIZES, DEQUANTIZES = "QuantizeLinear", "DequantizeLinear"
# What moves elements without computing: the position of the value that is moved.
MOVES = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "MaxPool", "Identity", "Expand", "DepthToSpace",
    "SpaceToDepth", "Gather", "Dropout",
}  # fmt: skip
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # their second operand is a weight


class FixedGrid(NamedTuple):
    """A grid with one scale for the whole value, and the operator set its quantizers come from."""

    scale: Array
    zero_point: Array
    domain: str = ""

    @property
    def low(self) -> int:
        return int(np.iinfo(self.zero_point.dtype).min)

    @property
    def high(self) -> int:
        return int(np.iinfo(self.zero_point.dtype).max)

    @property
    def top(self) -> float:
        """The largest value on it."""
        return (self.high - int(self.zero_point)) * float(self.scale)

    def same(self, other: FixedGrid | None) -> bool:
        return (
            other is not None
            and self.zero_point.dtype == other.zero_point.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def on(self, scale: float, zero_point: int) -> FixedGrid:
        """Another grid of the same code type."""
        return FixedGrid(np.array(scale, np.float32), np.array(zero_point, self.zero_point.dtype), self.domain)


def constant(value: ir.Value | None) -> Array | None:
    """What a value is where it is constant, else None."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        return np.asarray(maker.attributes["value"].as_tensor().numpy())
    return None


def grid_of(node: ir.Node) -> FixedGrid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None where it is per channel or computed at run time."""
    scale = constant(node.inputs[1])
    if scale is None or scale.size != 1:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        codes = constant(node.inputs[0])
        point = np.zeros((), np.uint8 if codes is None else codes.dtype)
    else:
        found = constant(zero)
        if found is None:
            return None
        point = found
    return FixedGrid(scale.reshape(()), point.reshape(()), node.domain)


def read_grid(value: ir.Value | None) -> FixedGrid | None:
    """The grid a value was just dequantized from."""
    maker = value.producer() if value is not None else None
    return grid_of(maker) if maker is not None and maker.op_type == DEQUANTIZES else None


def written_grid(value: ir.Value) -> FixedGrid | None:
    """The one grid that all readers of a value quantize it to."""
    readers = [node for node, _ in value.uses()]
    grids = [grid_of(node) if node.op_type == QUANTIZES else None for node in readers]
    if not grids or value.is_graph_output() or any(g is None or not g.same(grids[0]) for g in grids):
        return None
    return grids[0]


def is_eight_bits(grid: FixedGrid | None) -> bool:
    return grid is not None and grid.zero_point.dtype in (np.dtype(np.int8), np.dtype(np.uint8))


class Editor:
    """Puts nodes and constants into a graph under names that are not taken."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.taken = {v.name for n in self.graph for v in (*n.inputs, *n.outputs) if v is not None}
        self.taken |= {n.name for n in self.graph} | set(self.graph.initializers)

    def fresh(self, base: str) -> str:
        name, number = base, 2
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name

    def constant(self, array: Any, base: str) -> ir.Value:
        name = self.fresh(base)
        value = ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))
        self.graph.register_initializer(value)
        return value

    def node(
        self, kind: str, inputs: Iterable[ir.Value | None], base: str, before: ir.Node | None, domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:  # fmt: skip
        """A new node in front of another one, or at the end; its result."""
        name = self.fresh(base)
        made = ir.node(
            kind, list(inputs), attributes, domain=domain, name=name, outputs=[ir.Value(name=self.fresh(f"{name}_out"))]
        )
        if before is None:
            self.graph.append(made)
        else:
            self.graph.insert_before(before, made)
        return made.outputs[0]

    def quantize(self, value: ir.Value, grid: FixedGrid, before: ir.Node | None) -> ir.Value:
        """Codes of a value."""
        return self.node(QUANTIZES, [value, *self._operands(grid, value)], f"{value.name}_codes", before, grid.domain)

    def dequantize(self, codes: ir.Value, grid: FixedGrid, before: ir.Node | None) -> ir.Value:
        base = f"{codes.name}_value"
        return self.node(DEQUANTIZES, [codes, *self._operands(grid, codes)], base, before, grid.domain)

    def round(self, value: ir.Value, grid: FixedGrid, before: ir.Node | None) -> ir.Value:
        """A value quantized to a grid and read back from it."""
        read = self.dequantize(self.quantize(value, grid, before), grid, before)
        read.shape, read.type = value.shape, value.type
        return read

    def _operands(self, grid: FixedGrid, value: ir.Value) -> list[ir.Value]:
        return [
            self.constant(grid.scale, f"{value.name}_scale"),
            self.constant(grid.zero_point, f"{value.name}_zero_point"),
        ]

    def reroute(self, old: ir.Value, new: ir.Value, uses: Iterable[tuple[ir.Node, int]] | None = None) -> None:
        """Let readers of a value (all, or these) read another one; an answer of the model keeps its name."""
        for node, index in list(old.uses()) if uses is None else list(uses):
            node.replace_input_with(index, new)
        if uses is None and old.is_graph_output():
            position = list(self.graph.outputs).index(old)
            new.shape, new.type = old.shape, old.type
            old.name, new.name = self.fresh(f"{old.name}_before"), old.name
            self.graph.outputs[position] = new

    def remove(self, node: ir.Node) -> None:
        self.graph.remove(node, safe=True)


def site(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def sweep(model: ir.Model) -> None:
    """Take away what nobody reads."""
    graph = model.graph
    for node in reversed(list(graph)):
        if not any(out.is_graph_output() or out.uses() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


__all__ = [
    "DEQUANTIZES", "LAYERS", "MOVES", "QUANTIZES", "Array", "Change", "Editor", "FixedGrid", "constant", "grid_of",
    "is_eight_bits", "read_grid", "site", "sweep", "written_grid",
]  # fmt: skip

"""An operator that computes in float, where it stands in the file: what it reads, who reads it, and on which grids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from graphopt.backends.onnxruntime.audit.work import Shapes
from graphopt.evaluation.compliance.model import LAYERS, DeclaredGrid, Model, attribute
from graphopt.evaluation.compliance.rules import MOVES, family_of
from graphopt.targets import Target
from graphopt.utils.quantities import few


@dataclass(frozen=True)
class Case:
    """An operator that computes in float, where it stands in the file.

    Attributes:
        shapes: of what was averaged, by name.
    """

    model: Model
    node: onnx.NodeProto
    target: Target
    shapes: Shapes

    @property
    def values(self) -> list[str]:
        """What it reads that is computed."""
        known = self.node.input[:2] if self.node.op_type in LAYERS or self.node.op_type in MOVES else self.node.input
        return [v for v in known if v and not self.model.is_weight(v) and v not in self.model.constants]

    @property
    def into(self) -> dict[str, DeclaredGrid | None]:
        return {value: self.model.grid(value) for value in self.values}

    @property
    def out(self) -> list[DeclaredGrid]:
        """Grids that its result, or that of the activation behind it, is quantized to."""
        return [self.model.grid_of(r) for r in self.model.behind(self.node) if r.op_type == "QuantizeLinear"]

    @property
    def family(self) -> str | None:
        return family_of(self.node.op_type)


def axes(case: Case) -> list[int] | None:
    found = attribute(case.node, "axes")
    if found is None and len(case.node.input) > 1 and case.node.input[1] in case.model.constants:
        found = case.model.constants[case.node.input[1]].reshape(-1)
    return None if found is None else [int(a) for a in found]


def adds_constant(case: Case, node: onnx.NodeProto) -> bool:
    return any(case.model.is_weight(value) for value in node.input)


def is_written(model: Model, node: onnx.NodeProto) -> bool:
    """Whether all that read a node's result quantize it."""
    readers = model.readers.get(node.output[0], [])
    return bool(readers) and all(r.op_type == "QuantizeLinear" for r in readers)


def any_quantizer(model: Model) -> bool:
    return any("Linear" in node.op_type or node.op_type.startswith("QGemm") for node in model.nodes)


def code_readers(model: Model, value: str) -> int:
    """How many operators read what one QuantizeLinear wrote."""
    maker = model.maker(value)
    if maker is None:
        return 1
    dequantizers = model.readers.get(maker.input[0], [])
    return sum(len(model.readers.get(d.output[0], [])) for d in dequantizers)


def readers_behind(model: Model, value: str) -> Iterator[int]:
    for quantizer in model.readers.get(value, []):
        if quantizer.op_type == "QuantizeLinear":
            for dequantizer in model.readers.get(quantizer.output[0], []):
                yield len(model.readers.get(dequantizer.output[0], []))


def shown(values: list[str]) -> str:
    return few(values, 2)

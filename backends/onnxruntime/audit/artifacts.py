"""The audit of our own artifacts: sites and work of layers are noted in their manifests."""

from __future__ import annotations

from typing import Any

import onnx

from graphopt.artifacts.audit import Audit
from graphopt.artifacts.report import FloatOperator
from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact
from graphopt.backends.onnxruntime.assignment import own_name
from graphopt.backends.onnxruntime.audit.operators import FLOAT_WORK, INTEGER_WORK, NEUTRAL, REASONS
from graphopt.backends.onnxruntime.audit.reading import (
    Hardware,
    Kind,
    Reading,
    adds_pairs_here,
    declared,
    executed,
    optimized,
)
from graphopt.backends.onnxruntime.audit.saturation import saturates
from graphopt.backends.onnxruntime.nbits import OPERATOR as MULTIPLIES_BLOCKS
from graphopt.backends.onnxruntime.qnn.refusals import left_to_cpu
from graphopt.evaluation.compliance.model import Model
from graphopt.lowering.signs import disagreement


def audit(artifact: OnnxRuntimeArtifact) -> Audit:
    """Read back what the runtime makes of an artifact on this machine; for other hardware, what the model's quantizers say."""
    target = artifact.manifest.target
    vendor = target["runtime"]["vendor_compiler"]
    pairs = not vendor and adds_pairs_here(target["runtime"]["architecture"])
    refused = left_to_cpu(artifact) if vendor else {}
    if vendor:
        reading = declared(Model.read(artifact), Hardware.of(target["kernels"]))
    else:
        reading = executed(optimized(artifact.folder / MODEL, weights=pairs), "the runtime's graph")
    layers = artifact.manifest.options["layers"]  # weight name -> site and MACs, written by `lower`
    found = Audit(total_macs=sum(layer["macs"] for layer in layers.values()))
    positions = {**INTEGER_WORK, **FLOAT_WORK, MULTIPLIES_BLOCKS: 1}
    weights = [_weight(node, positions.get(node.op_type), reading) for node in reading.nodes]
    left = _calls(layers, set(weights))
    for node, weight in zip(reading.nodes, weights, strict=True):
        operator, kind, position = node.op_type, reading.kind(node), positions.get(node.op_type)
        found.operators[operator] = found.operators.get(operator, 0) + 1
        layer, macs = left[weight].pop(0) if left.get(weight) else (layers.get(weight), 0)
        site = layer["site"] if layer else own_name(str(node.name))
        if operator == MULTIPLIES_BLOCKS:
            bits = next(int(a.i) for a in node.attribute if a.name == "bits")
            found.weight_only.append(site)
            found.weight_only_macs[bits] = found.weight_only_macs.get(bits, 0) + macs
        elif (why := refused.get(node.name)) is not None:
            found.floating.append(FloatOperator(site, operator, why, macs))
        elif kind is Kind.INTEGER and position is not None:
            found.integer.append(site)
            found.integer_macs += macs
            if pairs and saturates(node, reading):
                found.saturating.append(site)
        elif kind is Kind.FLOAT and operator not in NEUTRAL:
            otherwise = "no integer operator of the target" if vendor else "the operators around it are float"
            signs = None if vendor else disagreement(*_types(node, reading))
            reason = (layer or {}).get("left") or REASONS.get(operator) or signs or otherwise
            found.floating.append(FloatOperator(site, operator, reason, macs))
    return found


def _calls(layers: dict[str, Any], present: set[str]) -> dict[str, list[tuple[Any, int]]]:
    """By the name of a weight in the file: layer and MACs of every call that reads it, those of equal weights included."""
    kept: dict[str, str] = {}  # the first of equal weights -> the one that the file has for them
    for name, layer in layers.items():
        if name in present:
            kept.setdefault(layer.get("same_as", name), name)
    found: dict[str, list[tuple[Any, int]]] = {}
    for name, layer in layers.items():
        stored = name if name in present else kept.get(layer.get("same_as", name), name)
        found.setdefault(stored, []).extend((layer, macs) for macs in layer.get("calls", [layer["macs"]]))
    return found


def _types(node: Any, reading: Reading) -> tuple[list[str], str | None]:
    """Types of the codes that an operator's values are read from and become, and of those of its weight."""
    read = [maker for value in node.input if (maker := reading.makers.get(value)) is not None]
    read = [maker for maker in read if maker.op_type == "DequantizeLinear"]
    values = [maker for maker in read if reading.kind(maker) is Kind.CONVERTS]
    made = [reader for value in node.output for reader in reading.readers.get(value, [])]
    values += [reader for reader in made if reader.op_type == "QuantizeLinear"]
    weights = [maker for maker in read if maker not in values and maker.input[0] == _weight(node, 1, reading)]
    types = [_type(value, reading) for value in values], [_type(weight, reading) for weight in weights]
    return [t for t in types[0] if t], next(iter(types[1]), None)


def _type(node: Any, reading: Reading) -> str | None:
    """Of the codes that a conversion reads or writes, by its zero point."""
    point = reading.constants.get(node.input[2]) if len(node.input) > 2 else None
    return None if point is None else str(onnx.helper.tensor_dtype_to_np_dtype(point.data_type))


def _weight(node: Any, position: int | None, reading: Reading) -> str:
    """The name of the initializer a layer reads, through conversions on the way; empty for what is no layer."""
    if position is None:
        return ""
    name = node.input[position] if position < len(node.input) else ""
    while name in reading.makers and reading.makers[name].op_type in (
        "DequantizeLinear",
        "Transpose",
        "Reshape",
        "Identity",
    ):
        name = reading.makers[name].input[0]
    return str(name)

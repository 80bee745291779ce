"""The graph that runs, read back: which of its operators compute in integer, which in float.

ONNX Runtime fuses quantizers around an operator into one integer kernel, or silently computes in float. After loading a model
once with its optimized graph written to disk, the operators in that file are what executes. For hardware whose vendor's compiler
reads the file, what lies between quantizers and is in the target's table counts as integer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from graphopt.backends.onnxruntime.artifact import ONE_FILE, open_session
from graphopt.backends.onnxruntime.audit.operators import CONVERSIONS, INDICES, INTEGER_WORK, TO_FLOAT
from graphopt.evaluation.compliance.model import ACTIVATIONS, LAYERS, Model
from graphopt.evaluation.compliance.rules import MOVES, family_of
from graphopt.targets import Runtime, Target
from graphopt.targets.machine import architecture, machine_here

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
CODES = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}


class Kind(Enum):
    """What an operator computes in. MOVES_CODES: copies codes. OTHER: sizes, positions and constants."""

    INTEGER = "integer"
    MOVES_CODES = "moves codes"
    CONVERTS = "converts"
    FLOAT = "float"
    OTHER = "other"


@dataclass
class Reading:
    """A graph, and what each of its operators computes in.

    Attributes:
        kinds: by `id` of the node.
        makers, readers: of a value.
        how: in words, what was read.
        constants: initializers by name, of a graph that the runtime wrote.
    """

    nodes: list[onnx.NodeProto]
    kinds: dict[int, Kind]
    how: str
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            for name in node.output:
                self.makers[name] = node
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def kind(self, node: onnx.NodeProto) -> Kind:
        return self.kinds[id(node)]

    def of(self, *kinds: Kind) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if self.kinds[id(node)] in kinds)


def optimized(path: Path, *, defaults: bool = False, signed: bool = True, weights: bool = False) -> Any:
    """The model as ONNX Runtime rewrites it for this machine, with or without its weights; see `open_session`."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        target = Path(folder) / "optimized.onnx"
        open_session(path, optimized=target, defaults=defaults, signed=signed)
        return onnx.load(str(target), load_external_data=weights)


def executed(model: Any, how: str) -> Reading:
    """What computes in what, in a graph that ONNX Runtime wrote."""
    graphs = [model.graph, *subgraphs(model.graph)]
    nodes = list(_all_nodes(model.graph))
    kinds: dict[int, Kind] = {}
    holds: dict[str, str] = {}  # value -> "constant", "codes", "float" or "other"
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        holds[value.name] = "float" if kind in FLOATS else "codes" if kind in CODES else "other"
    constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    holds |= dict.fromkeys(constants, "constant")
    for node in nodes:
        if inner := _subgraphs_of(node):
            kinds[id(node)] = Kind.OTHER
            holds |= {
                name: holds.get(value.name, "other") for name, value in zip(node.output, inner[0].output, strict=False)
            }
            continue
        read = [holds.get(name, "other") for name in node.input if name]
        kind, made = _kind(node, read)
        kinds[id(node)] = kind
        holds |= dict.fromkeys(node.output, made)
    return Reading(nodes, kinds, how, constants)


def _subgraphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def subgraphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """All graphs inside of operators such as `If`."""
    inside = [inner for node in graph.node for inner in _subgraphs_of(node)]
    return [*inside, *(deeper for inner in inside for deeper in subgraphs(inner))]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The operators of a graph, those inside of one in front of it."""
    for node in graph.node:
        for inner in _subgraphs_of(node):
            yield from _all_nodes(inner)
        yield node


def _kind(node: onnx.NodeProto, read: list[str]) -> tuple[Kind, str]:
    """What an operator computes in, and what its answers hold, from what it reads."""
    name = node.op_type
    if name in INDICES:
        return Kind.OTHER, "other"
    if all(held == "constant" for held in read):
        return Kind.OTHER, "constant"
    if name in CONVERSIONS:
        return Kind.CONVERTS, "float" if name == "DequantizeLinear" else "codes"
    if name in INTEGER_WORK or name.startswith("QLinear"):
        bare = name == "QGemm" and (len(node.input) < 8 or not node.input[7])
        return Kind.INTEGER, "float" if name in TO_FLOAT or bare else "codes"
    if name == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        made = "float" if to in FLOATS else "codes" if to in CODES else "other"
        return (
            Kind.FLOAT if "float" in read and made == "float" else Kind.CONVERTS if "codes" in read else Kind.OTHER
        ), made
    if "float" in read:
        return Kind.FLOAT, "float"
    return (Kind.MOVES_CODES, "codes") if "codes" in read else (Kind.OTHER, "other")


class Hardware(NamedTuple):
    """What of `Kernels` tells integers from floats in a file."""

    integer: Collection[str]
    float_output: Collection[str]
    fused_sums: bool

    @classmethod
    def of(cls, kernels: Mapping[str, Any]) -> Hardware:
        """From the kernels of `Target.to_dict()`, which manifests hold."""
        return cls(kernels["integer"], kernels["float_output"], kernels["fused_sums"])


def declared(model: Model, hardware: Hardware) -> Reading:
    """What computes in what by the quantizers of a file and the families of operators that the hardware computes in integer."""
    kinds: dict[int, Kind] = {}
    for node in model.nodes:
        kinds[id(node)] = _declared(model, node, hardware, kinds)
    return Reading(
        model.nodes, kinds, "what its quantizers declare, and the operators the hardware computes in integer"
    )


def _declared(model: Model, node: onnx.NodeProto, hardware: Hardware, kinds: dict[int, Kind]) -> Kind:
    name, source = node.op_type, model.maker(node.input[0]) if node.input else None
    if name in INDICES or name == "Constant" or all(model.is_weight(value) for value in node.input if value):
        return Kind.OTHER
    if name in CONVERSIONS:
        return Kind.CONVERTS
    if name in INTEGER_WORK or name.startswith("QLinear"):
        return Kind.INTEGER
    if name in ACTIVATIONS and source is not None and kinds.get(id(source)) is Kind.INTEGER:
        return Kind.INTEGER  # fused into the layer or sum before it
    if source is not None and kinds.get(id(source)) is Kind.OTHER and not model.is_weight(node.input[0]):
        return Kind.OTHER
    family = family_of(name)
    taken = family in hardware.integer or name in MOVES or name in ACTIVATIONS
    if taken and model.between_codes(node, sums=hardware.fused_sums):
        return Kind.MOVES_CODES if name in MOVES else Kind.INTEGER
    if name in LAYERS and taken and family in hardware.float_output and model.reads_codes(node):
        return Kind.INTEGER
    return Kind.FLOAT


def read(path: Path, model: Model, target: Target) -> Reading:
    """What of a file runs on a target, as well as it can be known here."""
    if target.runtime.vendor_compiler:
        kernels = target.kernels
        return declared(model, Hardware(kernels.integer, kernels.float_output, kernels.fused_sums))
    signed = target.runtime.architecture == "aarch64"
    how = "the graph as ONNX Runtime rewrote it for this machine"
    if target.runtime.architecture != architecture():
        how += ", with signed codes left as they are, as on 64-bit ARM" if signed else ", as on x86-64"
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        named = _named(path, model, Path(folder))
        return executed(optimized(named, defaults=True, signed=signed, weights=adds_pairs(target.runtime)), how)


def adds_pairs(runtime: Runtime) -> bool:
    """Whether products of bytes are added in pairs that saturate: on x86-64 without VNNI, said of the target or found here."""
    return runtime.machine == "avx2" or (not runtime.vendor_compiler and adds_pairs_here(runtime.architecture))


def adds_pairs_here(of: str) -> bool:
    """Whether this machine does so in what it runs of a target's architecture."""
    return of == architecture() and machine_here() == "avx2"


def _named(path: Path, model: Model, folder: Path) -> Path:
    """A copy in which every operator has a name of its own, by which it is found again in what runs; or the file, if it has."""
    if all(node.name for node in model.nodes):
        return path  # the runtime refuses files in which two have the same
    proto = onnx.load(str(path))
    for node, original in zip(proto.graph.node, model.nodes, strict=True):
        node.name = model.name(original)
    onnx.save(proto, str(folder / "named.onnx"), save_as_external_data=proto.ByteSize() > ONE_FILE)
    return folder / "named.onnx"

"""Operators in float that hand values to each other, as operators of the original file.

The runtime renames, splits and inlines: an operator that runs is looked up by its name, then by the name of its answer; operators
of the file that run under no name of theirs (functions such as HardSwish, fused ones) belong to the float region that computes
what their neighbours read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import networkx as nx
import onnx

from graphopt.backends.onnxruntime.audit.operators import CONVERSIONS
from graphopt.backends.onnxruntime.audit.reading import Kind, Reading
from graphopt.evaluation.compliance.model import Model

TOKEN = re.compile(r"_token_\d+")  # what the runtime appends to make a name its own
LAYOUT = {
    "Transpose",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Identity",
    "Cast",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
}


@dataclass
class Region:
    """One float region in both graphs.

    Attributes:
        runs: operators that run. originals: of the file, in order; empty where only a conversion is left.
        conversions: values read from codes, and written as codes.
    """

    runs: list[onnx.NodeProto]
    conversions: int
    originals: list[onnx.NodeProto] = field(default_factory=list)


class Origins:
    """Which operators of the file run as which."""

    def __init__(self, model: Model, reading: Reading) -> None:
        self.model, self.reading = model, reading
        self.by_name = {model.name(node): node for node in model.nodes}
        self.runs: dict[int, list[onnx.NodeProto]] = {}  # id of the original -> what runs
        self.original: dict[int, onnx.NodeProto] = {}
        for node in reading.nodes:
            if (found := self._look_up(node)) is not None:
                self.original[id(node)] = found
                self.runs.setdefault(id(found), []).append(node)

    def _look_up(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        name = TOKEN.sub("", node.name)
        while name:
            if name in self.by_name:
                return self.by_name[name]
            name = name.rpartition("/")[0]  # the runtime appends what it fused
        return next((self.model.makers[out] for out in node.output if out in self.model.makers), None)

    def lost(self) -> list[onnx.NodeProto]:
        """Operators of the file that run under no name of theirs."""
        return [
            node
            for node in self.model.nodes
            if id(node) not in self.runs
            and node.op_type not in CONVERSIONS | {"Constant"}
            and not all(self.model.is_weight(value) for value in node.input if value)
        ]

    def kind(self, node: onnx.NodeProto) -> Kind | None:
        """What an operator of the file computes in; None where it does not run under a name of its own."""
        kinds = [self.reading.kind(run) for run in self.runs.get(id(node), [])]
        return Kind.INTEGER if Kind.INTEGER in kinds else kinds[0] if kinds else None


def regions(origins: Origins) -> list[Region]:
    """The float regions of a graph, in execution order."""
    reading = origins.reading
    graph, nodes = nx.Graph(), {id(node): node for node in reading.of(Kind.FLOAT)}
    graph.add_nodes_from(nodes)
    for node in nodes.values():
        for name in node.input:
            maker = reading.makers.get(name)
            if maker is not None and id(maker) in nodes:
                graph.add_edge(id(maker), id(node))
    order = {id(node): number for number, node in enumerate(reading.nodes)}
    found = [_region(reading, sorted(part, key=order.__getitem__), nodes) for part in nx.connected_components(graph)]
    found = [region for region in found if _counts(region, reading)]
    for region in found:
        seen = {id(o): o for run in region.runs if (o := origins.original.get(id(run))) is not None}
        region.originals = [o for o in seen.values() if o.op_type not in CONVERSIONS]
    _adopt(origins, found)
    place = {id(node): number for number, node in enumerate(origins.model.nodes)}
    for region in found:
        region.originals.sort(key=lambda node: place[id(node)])
    return sorted(found, key=lambda region: order[id(region.runs[0])]) + _requantizations(origins)


def _region(reading: Reading, members: list[int], nodes: dict[int, onnx.NodeProto]) -> Region:
    runs = [nodes[m] for m in members]
    into = {name for node in runs for name in node.input if _converts(reading, reading.makers.get(name))}
    out = {
        id(r) for node in runs for name in node.output for r in reading.readers.get(name, []) if _converts(reading, r)
    }
    return Region(runs, len(into) + len(out))


def _converts(reading: Reading, node: onnx.NodeProto | None) -> bool:
    return node is not None and reading.kind(node) is Kind.CONVERTS


def _counts(region: Region, reading: Reading) -> bool:
    """Whether it computes, or stands between codes; changing the layout of the model's own inputs and answers is none."""
    if any(node.op_type not in LAYOUT for node in region.runs):
        return True
    into = any(_converts(reading, reading.makers.get(n)) for node in region.runs for n in node.input)
    out = any(_converts(reading, r) for node in region.runs for n in node.output for r in reading.readers.get(n, []))
    return into and out


def _requantizations(origins: Origins) -> list[Region]:
    """Codes read and rounded again at once, to another grid; with what stood between in the file, if anything did."""
    reading, model, found = origins.reading, origins.model, []
    for node in reading.of(Kind.CONVERTS):
        maker = reading.makers.get(node.input[0])
        if node.op_type != "QuantizeLinear" or maker is None or maker.op_type != "DequantizeLinear":
            continue
        if reading.kind(maker) is not Kind.CONVERTS:
            continue
        original = origins.original.get(id(node))
        between = model.maker(original.input[0]) if original is not None else None
        gone = [between] if between is not None and between.op_type not in CONVERSIONS else []
        found.append(Region([node], 2, gone))
    return found


def _adopt(origins: Origins, found: list[Region]) -> None:
    """Give operators that run under no name of theirs to the float regions of their neighbours."""
    model, lost = origins.model, origins.lost()
    home: dict[int, Region] = {}
    for region in found:
        for node in region.originals:
            home[id(node)] = region
        for run in region.runs:  # the conversions around it are neighbours, too
            around = [origins.reading.makers.get(name) for name in run.input]
            around += [r for name in run.output for r in origins.reading.readers.get(name, [])]
            for node in around:
                original = origins.original.get(id(node)) if node is not None else None
                if original is not None and original.op_type in CONVERSIONS:
                    home.setdefault(id(original), region)
    for sweep in (lost, lost[::-1]):
        for node in sweep:
            if id(node) in home:
                continue
            before = [home.get(id(model.makers[v])) for v in node.input if v in model.makers]
            behind = [home.get(id(r)) for v in node.output for r in model.readers.get(v, [])]
            both = [b for b in before if b in behind]
            near = next((b for b in (*both, *before, *behind) if b is not None), None)
            if near is not None and _is_missing(near, origins):
                home[id(node)] = near
                near.originals.append(node)


def _is_missing(region: Region, origins: Origins) -> bool:
    """Whether a float region runs operators that no operator of the file is known for."""
    return any(id(run) not in origins.original for run in region.runs)

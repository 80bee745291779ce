"""What the parts of a network take in integer and in float on this machine, and which had better stay in float.

    costs = KernelCosts.measure(integer, floating, graph)      two artifacts of one network
    print(costs)                                               the parts, slowest first
    costs.better_in_float()                                    layer names; none where integer is faster throughout

A *part* is what a runtime computes together: a layer, and the calls behind it that read nothing else, such as its activation
and the product with its own gate. Its time is the sum of its kernels'. Where a part in integer stands beside one in float,
values have to be converted; what that takes an element is measured, too. The best split of a network is then a minimum cut: its
parts are joined to "integer" and "float" by the time of the other, and to each other by that of a conversion.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import networkx
from torch import Tensor
from torch.fx.node import Node

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.shapes import counted
from graphopt.lowering.names import value_names
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table

CONVERSIONS = (".quantize", ".dequantize")
ROUNDS = 3  # of profiles: other work on the machine passes
BORDER = 4  # times a conversion: runtimes change layouts, too, where integer and float meet
LEAST_NS = 0.1  # nanoseconds to convert an element, where no conversion was seen


@dataclass(frozen=True)
class PartCost:
    """One part of a network.

    Attributes:
        name: of its first value.
        sites: the modules that it computes, the first one first.
        integer_ms, float_ms: milliseconds of its kernels; 0 where the runtime fused it into others.
        reads: by the name of another part, how many elements it takes from it.
    """

    name: str
    sites: tuple[str, ...]
    integer_ms: float
    float_ms: float
    reads: Mapping[str, int]


@dataclass(frozen=True)
class KernelCosts(Printed):
    """The parts of a network, in order, and the milliseconds to convert an element between integer and float."""

    parts: tuple[PartCost, ...]
    conversion_ms: float

    @classmethod
    def measure(cls, integer: Artifact, floating: Artifact, graph: Graph, runs: int = 10) -> KernelCosts:
        """Profile both artifacts in turn on the example of the graph, and take the least that each kernel took.

        Args:
            integer, floating: of one network, for one runtime.
            graph: the float graph, cleaned as `floating` was, so that names agree.
            runs: of which times are medians, in each of `ROUNDS` rounds.

        Raises:
            InputError: the runtime says nothing of its kernels. ArtifactError: an artifact cannot run here.
        """
        args, kwargs = graph.example.args, graph.example.kwargs
        rounds = [
            [artifact.profile(*args, runs=runs, **kwargs) for artifact in (integer, floating)] for _ in range(ROUNDS)
        ]
        in_integer, in_float = (_least(profiles) for profiles in zip(*rounds, strict=True))
        return cls.of(in_integer, in_float, graph)

    @classmethod
    def of(cls, integer: Profile, floating: Profile, graph: Graph) -> KernelCosts:
        """From profiles of both."""
        leaders = _leaders(graph)
        names = value_names(graph)
        members: dict[Node, list[Node]] = {}
        for node, leader in leaders.items():
            members.setdefault(leader, []).append(node)
        owners = {names[node]: names[leader] for node, leader in leaders.items()}
        owners |= {graph.site(node): names[leader] for leader, nodes in members.items() for node in nodes}
        of_integer, of_float = (_by_part(profile, owners) for profile in (integer, floating))
        parts = tuple(
            PartCost(
                names[leader],
                tuple(dict.fromkeys(graph.site(node) for node in nodes)),
                of_integer.get(names[leader], 0.0),
                of_float.get(names[leader], 0.0),
                _reads(nodes, leaders, names),
            )
            for leader, nodes in members.items()
        )
        sizes = {names[node]: _elements(node) for node in [*graph.inputs, *graph.calls()]}
        return cls(parts, _conversion(integer, sizes))

    @property
    def border_ms(self) -> float:
        """Milliseconds for each element that goes from integer to float or back."""
        return BORDER * self.conversion_ms

    def better_in_float(self) -> list[PartCost]:
        """The parts that are left in float where all together takes the least time."""
        network = networkx.DiGraph()
        for part in self.parts:  # on the side of "integer" a part pays the edge to "float", and the other way round
            network.add_edge(part.name, "float", capacity=part.integer_ms)
            network.add_edge("integer", part.name, capacity=part.float_ms)
            for other, elements in part.reads.items():
                for a, b in ((part.name, other), (other, part.name)):
                    network.add_edge(a, b, capacity=elements * self.border_ms)
        _, (_, in_float) = networkx.minimum_cut(network, "integer", "float")
        return [part for part in self.parts if part.name in in_float]

    def gain_ms(self, in_float: Iterable[PartCost]) -> float:
        """What these parts in float save, by the table: conversions to the others are paid."""
        chosen = {part.name for part in in_float}
        saved = sum(part.integer_ms - part.float_ms for part in self.parts if part.name in chosen)
        borders = (
            elements
            for part in self.parts
            for other, elements in part.reads.items()
            if (part.name in chosen) != (other in chosen)
        )
        return saved - sum(borders) * self.border_ms

    def blocks(self) -> list[Block]:
        order = sorted(self.parts, key=lambda part: part.float_ms - part.integer_ms)
        rows = [[part.name, f"{part.integer_ms:.4f}", f"{part.float_ms:.4f}"] for part in order]
        columns = [Column("part"), Column("integer ms", number=True), Column("float ms", number=True)]
        return [Line(f"a conversion takes {self.conversion_ms * 1e6:.2g} ns an element", "title"), Table(columns, rows)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _least(profiles: Sequence[Profile]) -> Profile:
    """What undisturbed kernels take: of each the least of several profiles of one artifact."""
    times = [min(same, key=lambda kernel: kernel.ms) for same in zip(*(p.kernels for p in profiles), strict=True)]
    return replace(profiles[0], kernels=times)


def _leaders(graph: Graph) -> dict[Node, Node]:
    """Each call -> the first one of its part: a call that is no layer joins the part that all its inputs are of."""
    leaders: dict[Node, Node] = {}
    for node in graph.calls():
        sources = [source for source in node.all_input_nodes if not graph.is_constant(source)]
        of = {leaders.get(source) for source in sources}
        leader = of.pop() if len(of) == 1 else None
        leaders[node] = node if leader is None or Layer.of(node) else leader
    return leaders


def _reads(nodes: Iterable[Node], leaders: Mapping[Node, Node], names: Mapping[Node, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            leader = leaders.get(source)
            if leader is not None and leader is not leaders[node]:
                found[names[leader]] = found.get(names[leader], 0) + _elements(source)
    return found


def _by_part(profile: Profile, owners: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds by part. What is named below a call, as a step of a decomposed activation is, belongs to it."""
    found: dict[str, float] = {}
    for kernel in profile.kernels:
        if _converts(kernel):
            continue
        name = kernel.layer
        while name not in owners and "." in name:
            name = name.rpartition(".")[0]
        if name in owners:
            found[owners[name]] = found.get(owners[name], 0.0) + kernel.ms
    return found


def _conversion(profile: Profile, sizes: Mapping[str, int]) -> float:
    """Milliseconds for each element that is converted: the median of what was seen."""
    seen = []
    for kernel in filter(_converts, profile.kernels):
        for kind in CONVERSIONS:
            if kernel.layer.endswith(kind) and (elements := sizes.get(kernel.layer.removesuffix(kind), 0)):
                seen.append(kernel.ms / elements)
    return max(statistics.median(seen) if seen else 0.0, LEAST_NS * 1e-6)


def _converts(kernel: KernelTime) -> bool:
    return kernel.layer.endswith(CONVERSIONS) or kernel.kernel in ("QuantizeLinear", "DequantizeLinear")


def _elements(node: Node) -> int:
    value: Any = node.meta["val"]
    return math.prod(counted(size) for size in value.shape) if isinstance(value, Tensor) else 0

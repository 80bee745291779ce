"""What the parts of a network take in integer and in float on this machine, and which had better stay in float.

    costs = KernelCosts.measure(integer, floating, graph)      two artifacts of one network
    print(costs)                                               the parts, slowest first
    costs.better_in_float()                                    layer names; none where integer is faster throughout

A *part* is what a runtime computes together: a layer and the calls behind it (`graphopt.evaluation.parts`). Its time is the sum
of its kernels'. Where a part in integer stands beside one in float, values have to be converted; what that takes an element is
measured, too. The best split of a network is then a minimum cut: its parts are joined to "integer" and "float" by the time of
the other, and to each other by that of a conversion.
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
from graphopt.artifacts.profile import Profile
from graphopt.evaluation.parts import CONVERSIONS, Part, converts, owners, parts, times
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import counted
from graphopt.lowering.names import value_names
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table

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
        names, found = value_names(graph), parts(graph)
        owner = owners(graph, found)
        of_integer, of_float = (times(profile, owner) for profile in (integer, floating))
        of = {node: part.name for part in found for node in part.nodes}
        costs = tuple(
            PartCost(
                part.name,
                tuple(dict.fromkeys(graph.site(node) for node in part.nodes)),
                of_integer.get(part.name, 0.0),
                of_float.get(part.name, 0.0),
                _reads(part, of),
            )
            for part in found
        )
        sizes = {names[node]: _elements(node) for node in [*graph.inputs, *graph.calls()]}
        return cls(costs, _conversion(integer, sizes))

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


def _reads(part: Part, of: Mapping[Node, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in part.nodes:
        for source in node.all_input_nodes:
            other = of.get(source)
            if other is not None and other != part.name:
                found[other] = found.get(other, 0) + _elements(source)
    return found


def _conversion(profile: Profile, sizes: Mapping[str, int]) -> float:
    """Milliseconds for each element that is converted: the median of what was seen."""
    seen = []
    for kernel in filter(converts, profile.kernels):
        for kind in CONVERSIONS:
            if kernel.layer.endswith(kind) and (elements := sizes.get(kernel.layer.removesuffix(kind), 0)):
                seen.append(kernel.ms / elements)
    return max(statistics.median(seen) if seen else 0.0, LEAST_NS * 1e-6)


def _elements(node: Node) -> int:
    value: Any = node.meta["val"]
    return math.prod(counted(size) for size in value.shape) if isinstance(value, Tensor) else 0

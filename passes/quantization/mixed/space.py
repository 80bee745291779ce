"""What there is to decide: the bits of every layer's weights, and of the activations that share a grid.

A layer is known by its name. Layers of one name (a module called twice), and grids whose values come from operators of one name,
are one decision, since a format is given by name. Values that come from outside the integer region (the image) keep the target's
format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
from torch.fx.node import Node

from graphopt.formats import with_bits
from graphopt.ir.calls import value
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.quantization.placement import LayerFormat, QuantizationPlan, SharedGrid, override, place
from graphopt.targets import Target
from graphopt.targets.number_formats import Kind
from graphopt.utils.errors import InputError

Bits = int | None  # None: float
Pin = Bits | tuple[int, int]


@dataclass(frozen=True)
class Decision:
    """Something whose bits are chosen.

    Attributes:
        sites: the names it is given by, in execution order.
        nodes: the layers whose weights, or the calls whose values are rounded.
        choices: from the most precise (None: float) to the least; a single one where nothing is left to choose.
        pinned: by the caller, so that it does not count in an average.
    """

    kind: Kind
    sites: tuple[str, ...]
    nodes: tuple[Node, ...]
    choices: tuple[Bits, ...]
    pinned: bool = False

    @property
    def name(self) -> str:
        return self.sites[0]


@dataclass(frozen=True)
class Space:
    """All decisions of a graph, in execution order; an assignment is one index into `choices` for each.

    Attributes:
        placement: where the quantizers go, with every decision open.
        floats: names of the layers that the caller keeps in float.
        reads: layer -> the decision about the activations it reads, None where they keep the target's format.
        grids: of each decision about activations, the grids it is about.
    """

    graph: Graph
    target: Target
    decisions: Sequence[Decision]
    placement: QuantizationPlan
    floats: Sequence[str]
    reads: Mapping[Node, int | None]
    grids: Mapping[int, Sequence[SharedGrid]]

    @classmethod
    def of(
        cls, graph: Graph, target: Target, weights: Sequence[Bits], activations: Sequence[int], pins: Mapping[str, Pin]
    ) -> Space:
        """`activations`: choices for the outputs of layers; empty: they keep the target's format."""
        floats = [name for name in _names(graph, pins) if _pin(name, pins) == (True, None)]
        plan = place(graph, target.kernels, target.formats.weights, target.formats.activations, dict.fromkeys(floats))
        if not plan.layers:
            raise InputError(
                f"there is no layer that {target.name!r} computes in integer and that is not kept in float"
            )
        found = [*_weights(graph, plan, weights, pins), *_activations(graph, plan, activations, pins)]
        order = {node: number for number, node in enumerate(graph.nodes)}
        found.sort(key=lambda pair: (order[pair[0].nodes[0]], pair[0].kind))
        decisions, grids = [decision for decision, _ in found], {n: g for n, (_, g) in enumerate(found) if g}
        grid_of = {node: n for n, each in grids.items() for grid in each for node in (*grid.produced, *grid.moved)}
        reads = {node: grid_of.get(node.args[0]) for node in plan.layers}  # type: ignore[arg-type]
        return cls(graph, target, decisions, plan, floats, reads, grids)

    def bits(self, assignment: Sequence[int]) -> list[Bits]:
        return [decision.choices[index] for decision, index in zip(self.decisions, assignment, strict=True)]

    def assignment(self, weights: Bits, activations: Bits) -> tuple[int, ...]:
        """The uniform one: these bits wherever they are a choice, what is pinned as it is."""
        wanted = {"weights": weights, "activations": activations}
        return tuple(d.choices.index(wanted[d.kind]) if len(d.choices) > 1 else 0 for d in self.decisions)

    def uniforms(self) -> dict[str, tuple[int, ...]]:
        """All uniform assignments by what they are called."""
        choices: dict[str, list[Bits]] = {"weights": [None], "activations": [None]}
        for decision in self.decisions:
            if len(decision.choices) > 1:
                choices[decision.kind] = list(decision.choices)
        several = len(choices["activations"]) > 1
        return {
            f"uniform {w or 'float'}" + (f"/{v}" if several else ""): self.assignment(w, v)
            for w in choices["weights"]
            for v in choices["activations"]
        }

    def formats(self, assignment: Sequence[int]) -> dict[str, LayerFormat | None]:
        """What `Quantize(formats=)` takes."""
        found: dict[str, LayerFormat | None] = dict.fromkeys(self.floats)
        for decision, bits in zip(self.decisions, self.bits(assignment), strict=True):
            for site in decision.sites:
                before = found.get(site, LayerFormat())
                if before is None or bits is None:
                    found[site] = None
                elif decision.kind == "weights":
                    found[site] = replace(before, weights=with_bits(self.target.formats.weights, bits))
                else:
                    found[site] = replace(before, activations=with_bits(self.target.formats.activations, bits))
        return found


def stored(decision: Decision) -> int:
    """Weights of a decision about weights; one that several layers read counts once."""
    weights = {layer.weight for node in decision.nodes if (layer := Layer.of(node))}
    return sum(math.prod(value(weight).shape) for weight in weights)


Found = tuple[Decision, Sequence[SharedGrid]]


def _weights(graph: Graph, plan: QuantizationPlan, choices: Sequence[Bits], pins: Mapping[str, Pin]) -> list[Found]:
    sites: dict[str, list[Node]] = {}
    for node in plan.layers:
        sites.setdefault(graph.site(node), []).append(node)
    found: list[Found] = []
    for site, nodes in sites.items():
        pinned, pin = _pin(site, pins)
        own = (pin[0] if isinstance(pin, tuple) else pin,) if pinned else tuple(choices)
        found.append((Decision("weights", (site,), tuple(nodes), own, pinned), ()))
    return found


def _activations(graph: Graph, plan: QuantizationPlan, choices: Sequence[int], pins: Mapping[str, Pin]) -> list[Found]:
    ties = nx.Graph()
    for number, grid in enumerate(plan.grids):
        for node in grid.produced:
            ties.add_edge(number, graph.site(plan.operators[node]))
    found: list[Found] = []
    for component in nx.connected_components(ties):
        grids = [plan.grids[number] for number in sorted(n for n in component if isinstance(n, int))]
        nodes = [node for grid in grids for node in grid.produced]
        sites = tuple(dict.fromkeys(graph.site(plan.operators[node]) for node in nodes))
        pin = next((p[1] for site in sites if isinstance(p := _pin(site, pins)[1], tuple)), None)
        if pin is not None or choices:
            own = tuple(choices) if pin is None else (pin,)
            found.append((Decision("activations", sites, tuple(nodes), own, pin is not None), grids))
    return found


def _pin(name: str, pins: Mapping[str, Pin]) -> tuple[bool, Pin]:
    return override(name, pins)  # type: ignore[arg-type, return-value]


def _names(graph: Graph, pins: Mapping[str, Pin]) -> list[str]:
    """The names of all layers, after looking whether every pattern finds one."""
    names = list(dict.fromkeys(graph.site(node) for node in graph.calls() if Layer.of(node)))
    for pattern in pins:
        if not any(_pin(name, {pattern: None})[0] for name in names):
            raise InputError(
                f"the pattern {pattern!r} in layers matches no layer; they are named like {', '.join(names[:5])}"
            )
    return names

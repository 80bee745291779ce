"""The parts of a network: what a runtime computes together, a layer and the calls behind it.

    for part in parts(graph):
        print(part.name, part.nodes)

A call that multiplies matrices begins a part; any other joins the part of the last of its inputs to be computed, as runtimes fuse
it: an activation its layer, a sum the later of its two branches, a product with a gate the gate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx.node import Node

from graphopt.artifacts.profile import KernelTime, Profile
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.lowering.names import value_names

CONVERSIONS = (".quantize", ".dequantize")


@dataclass(frozen=True)
class Part:
    """Calls in their order, the first of which gives the part its name."""

    name: str
    nodes: tuple[Node, ...]


def parts(graph: Graph) -> list[Part]:
    """In the order of their first calls; every call is in one."""
    names, leaders = value_names(graph), dict[Node, Node]()
    members: dict[Node, list[Node]] = {}
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.calls():
        sources = [source for source in node.all_input_nodes if source in leaders]
        leader = node
        if sources and not cost.products(node):
            leader = leaders[max(sources, key=order.__getitem__)]
        leaders[node] = leader
        members.setdefault(leader, []).append(node)
    return [Part(names[leader], tuple(nodes)) for leader, nodes in members.items()]


def owners(graph: Graph, found: Iterable[Part]) -> dict[str, str]:
    """The part of each value and module by its name."""
    names = value_names(graph)
    by_module = {graph.site(node): part.name for part in found for node in part.nodes}
    return by_module | {names[node]: part.name for part in found for node in part.nodes}


def times(profile: Profile, owner: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds by part. What is named below a call, as a step of a decomposed activation is, belongs to it."""
    found: dict[str, float] = {}
    for kernel in profile.kernels:
        if converts(kernel):
            continue
        name = kernel.layer
        while name not in owner and "." in name:
            name = name.rpartition(".")[0]
        if name in owner:
            found[owner[name]] = found.get(owner[name], 0.0) + kernel.ms
    return found


def converts(kernel: KernelTime) -> bool:
    """Whether a kernel only goes from float to integer, or back."""
    return kernel.layer.endswith(CONVERSIONS) or kernel.kernel in ("QuantizeLinear", "DequantizeLinear")

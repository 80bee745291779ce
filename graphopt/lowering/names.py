"""Names of the values of a deployed graph: those of the model's own modules.

    the convolution of module layer1.0.conv1    layer1.0.conv1
    the sum in module layer1.0                  layer1.0.add
    what a module computes in several calls     encoder.matmul, encoder.matmul_1
    codes of a value, and a value of codes      layer1.0.conv1.quantize, layer1.0.conv1.dequantize
    a weight of its codes                       layer1.0.conv1.weight

A backend names what it writes by them, and a simulation what it computes, so that both speak of the same values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx.node import Node

from graphopt.ir.graph import Graph
from graphopt.ir.ops import info
from graphopt.ir.quantizers import is_quantizer
from graphopt.lowering.qdq import Q

CONVERSIONS: dict[Any, str] = {
    Q.quantize_per_tensor.default: "quantize",
    Q.dequantize_per_tensor.default: "dequantize",
    Q.dequantize_per_channel.default: "dequantize",
}


class Names:
    """Hands out names, each of them once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}

    def unused(self, name: str) -> str:
        """The name, or the first of `name_1`, `name_2`, ... that nothing has; taken from now on."""
        found = name
        while found in self._taken:
            self._counts[name] = self._counts.get(name, 0) + 1
            found = f"{name}_{self._counts[name]}"
        self._taken.add(found)
        return found


def value_names(graph: Graph) -> dict[Node, str]:
    """A name for every input, constant and call, each its own; constants have those of their parameters, but where an input or
    output has it, and no call has that of another output."""
    inputs = dict(zip(graph.inputs, graph.input_names, strict=True))
    outputs = {n: name for n, name in zip(graph.outputs, graph.output_names, strict=True) if n.op == "call_function"}
    free = Names([*graph.input_names, *graph.output_names])
    targets = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    constants = {target: free.unused(target) for target in targets}
    chief = _chief(graph)
    names: dict[Node, str] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            names[node] = constants[str(node.target)]
        elif node in inputs:
            names[node] = inputs[node]
        elif node.op == "call_function":
            wanted = _wanted(graph, node, names, chief)
            names[node] = wanted if wanted == outputs.get(node) else free.unused(wanted)
    return names


def _wanted(graph: Graph, node: Node, names: dict[Node, str], chief: set[Node]) -> str:
    if node.target in CONVERSIONS:
        source: Any = node.args[0]
        if graph.is_constant(source):
            return str(source.target).removesuffix("_codes")
        kind = CONVERSIONS[node.target]
        return f"{names[source].removesuffix('.quantize').removesuffix('.dequantize')}.{kind}"
    site = graph.site(node)
    if site == node.name or node in chief:
        return site
    operator = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    return f"{site}.{operator}"


def _chief(graph: Graph) -> set[Node]:
    """The calls that are what a module is for: its only layer, or its only call, where there are no modules in it."""
    calls: dict[str, list[Node]] = {}
    for node in graph.calls():
        if node.target not in CONVERSIONS and not is_quantizer(node):
            calls.setdefault(graph.site(node), []).append(node)
    inner = {site[:dot] for site in calls for dot, letter in enumerate(site) if letter == "."}
    found = set()
    for site, own in calls.items():
        layers = [node for node in own if info(node).layer] or own
        if len(layers) == 1 and site not in inner:
            found.add(layers[0])
    return found

"""Where a factorization may happen: a constant weight, with all the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx.node import Node

from graphopt.graph import Graph
from graphopt.ops import Layer
from graphopt.passes.factorize.chain import Chain


@dataclass(frozen=True)
class Site:
    """A weight, its layers in execution order (more than one where it is shared), and its name without `.weight`."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def layer(self) -> Layer:
        return self.layers[0]

    def weight(self, graph: Graph) -> Tensor:
        """[out, in / groups, *kernel]"""
        return self.layer.canonical(graph.tensor(self.layer.weight))

    def macs(self, chain: Chain) -> int:
        """Multiply-accumulates of the chain in place of every layer."""
        return sum(chain.macs(layer) for layer in self.layers)


def sites(graph: Graph) -> Iterator[Site]:
    """All weights that only convolutions, transposed convolutions and linear layers read, as their weight."""
    for node in graph.nodes:
        if not graph.is_constant(node) or not graph.tensor(node).is_floating_point():
            continue
        order = {user: position for position, user in enumerate(graph.nodes) if user in node.users}
        layers = [Layer.of(user) for user in sorted(node.users, key=order.__getitem__)]
        if layers and all(layer and layer.weight is node and layer.input is not node for layer in layers):
            yield Site(str(node.target).removesuffix(".weight"), tuple(layer for layer in layers if layer))


def put(graph: Graph, site: Site, chains: Sequence[Chain]) -> list[list[Node]]:
    """Put a chain in the place of each of a site's layers; all have the same weights. Of each layer the stages' calls.

    The last stage takes over the layer's bias. Shapes are stale until `graph.refresh()`.
    """
    first, constants = site.layer.node, []
    for number, stage in enumerate(chains[0].stages):
        constants.append(graph.add_constant(f"{site.name}.{number}.weight", stage.native, before=first, trainable=True))
    placed = []
    for layer, chain in zip(site.layers, chains, strict=True):
        x, calls = layer.input, []
        for stage, weight in zip(chain.stages, constants, strict=True):
            target, rest = stage.call(layer.bias if stage is chain.stages[-1] else None)
            x = graph.call(target, x, weight, *rest, before=layer.node)
            calls.append(x)
        if "moments" in layer.node.meta:
            x.meta["moments"] = layer.node.meta["moments"]
        graph.replace(layer.node, x)
        placed.append(calls)
    return placed

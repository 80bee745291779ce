"""Where a factorization may happen: a constant weight, with all the layers that read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.fitting.least_squares import shift_output
from graphopt.ir.calls import operand, shape, value
from graphopt.ir.facts import MOMENTS
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.passes.factorization.chain import Chain
from graphopt.utils.checks import names_weight
from graphopt.utils.errors import InputError


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
        layers = [Layer.of(user) for user in sorted(node.users)]  # in execution order
        if layers and all(layer and layer.weight is node and layer.input is not node for layer in layers):
            yield Site(str(node.target).removesuffix(".weight"), tuple(layer for layer in layers if layer))


def check_named(patterns: Iterable[str], found: Sequence[Site]) -> None:
    """Raise `ValueError` where a name pattern matches no site."""
    for pattern in patterns:
        if not any(names_weight(pattern, f"{site.name}.weight") for site in found):
            raise InputError(f"layers: no layer matches {pattern!r}")


@dataclass(frozen=True)
class Placed:
    """A chain in a graph.

    Attributes:
        before: the name of the call that was there.
        start: the first call; reads what the layer read.
        calls: of the stages' operators, in order.
        end: the call that gives what the layer gave: the last stage, or where its features are put together and biased.
    """

    before: str
    start: Node
    calls: tuple[Node, ...]
    end: Node


def put(graph: Graph, site: Site, chains: Sequence[Chain]) -> list[Placed]:
    """Put a chain in the place of each of a site's layers; all have the same weights.

    The last stage takes over the layer's bias; behind stages with views it is added. Shapes are stale until `graph.refresh()`.
    """
    first, constants, replaced = site.layer.node, [], site.layer.node.all_input_nodes[1:2]
    for number, stage in enumerate(chains[0].stages):
        constants.append(graph.add_constant(f"{site.name}.{number}.weight", stage.native, before=first, like=replaced))
    return [_place(graph, layer, chain, constants) for layer, chain in zip(site.layers, chains, strict=True)]


def _place(graph: Graph, layer: Layer, chain: Chain, weights: Sequence[Node]) -> Placed:
    x, made, calls = layer.input, [], []
    for stage, weight in zip(chain.stages, weights, strict=True):
        for target, argument in stage.geometry.view.calls() if stage.geometry.view else []:
            x = graph.call(target, x, argument, before=layer.node)
            made.append(x)
        target, rest = stage.call(layer.bias if stage is chain.stages[-1] and not chain.has_views else None)
        x = graph.call(target, x, weight, *rest, before=layer.node)
        made.append(x)
        calls.append(x)
    if chain.has_views:
        sizes = [size if isinstance(size, int) else -1 for size in shape(layer.node)]
        x = graph.call(aten.reshape.default, x, sizes, before=layer.node)
        if layer.bias is not None:
            x = graph.call(aten.add.Tensor, x, layer.bias, before=layer.node)
    if (moments := graph.fact(layer.node, MOMENTS)) is not None:
        graph.set_fact(x, MOMENTS, moments)
    x.meta["val"] = value(
        layer.node
    )  # a layer right behind it may be replaced next, and asks for the shape of what it reads
    graph.replace(layer.node, x)
    return Placed(layer.node.name, made[0], tuple(calls), x)


def with_bias(graph: Graph, name: str, placed: Placed) -> Placed:
    """Add a bias of zero to a chain that has no place for one."""
    if Layer.of(placed.end) is not None or placed.end.target is aten.add.Tensor:
        return placed
    end, behind = placed.end, graph.after(placed.end)
    zero = torch.zeros(shape(end)[-1], dtype=value(end).dtype)
    bias = graph.add_constant(f"{name}.bias", zero, before=behind, like=placed.calls[-1].all_input_nodes[1:2])
    total = graph.call(aten.add.Tensor, end, bias, before=behind, like=end)
    end.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total, propagate_meta=False)
    return replace(placed, end=total)


def bias_of(graph: Graph, end: Node) -> Tensor | None:
    """The constant bias of what a chain gives, [out]; None where there is none (see `with_bias`)."""
    last = Layer.of(end)
    bias = operand(end, 1) if last is None else last.bias
    return None if bias is None else graph.tensor(bias)


def shift_chain(graph: Graph, end: Node, shift: Tensor) -> None:
    """Add a vector [out] to what a chain gives."""
    if (last := Layer.of(end)) is not None:
        shift_output(graph, last, shift)
    else:
        old = graph.tensor(operand(end, 1))
        graph.set_constant(end, 1, (old + shift).to(old.dtype))

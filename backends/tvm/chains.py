"""Float layers: one kernel for a layer, the sum behind it and the activation behind that.

conv -> [add ->] [relu or clamp]
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.fx.node import Node

from graphopt.backends.tvm.images import call_layer, layer_input, layer_spec
from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Epilogue
from graphopt.graph import Graph
from graphopt.integers.kernels import Window
from graphopt.ops import Layer, clamp_bounds, family, shape


class Chain(NamedTuple):
    """A float layer and what its kernel does besides."""

    layer: Layer
    added: Node | None
    clamp: tuple[float | None, float | None]


def chains(graph: Graph) -> dict[Node, Chain]:
    """The last node of every chain of a float layer with constant weights -> the chain.

    Of two layers that are added, the first one's chain holds the sum; the other's ends before it.
    """
    found: dict[Node, Chain] = {}
    summed: set[Node] = set()
    for node in graph.calls():
        layer = Layer.of(node)
        if layer is None or layer.kind == "conv_transpose" or layer.dims > 2 or not graph.is_constant(layer.weight):
            continue
        if layer.bias is not None and not graph.is_constant(layer.bias):
            continue
        last, added = node, None
        clamp: tuple[float | None, float | None] = (None, None)
        reader = _only_reader(last)
        if reader is not None and family(reader) == "add" and all(_fits(a, node) for a in reader.args[:2]):
            others = [a for a in reader.args[:2] if isinstance(a, Node) and a is not last]
            if len(others) == 1 and reader not in summed:
                summed.add(reader)
                added, last = others[0], reader
                reader = _only_reader(last)
        if reader is not None and family(reader) in ("relu", "clamp"):
            low, high = clamp_bounds(reader)
            infinity = float("inf")
            clamp = (None if low == -infinity else low, None if high == infinity else high)
            last = reader
        found[last] = Chain(layer, added, clamp)
    return found


def members(chain: Chain, last: Node) -> set[Node]:
    """The nodes of a chain before the last one."""
    nodes = {chain.layer.node}
    if last is not chain.layer.node:
        nodes |= {a for a in last.all_input_nodes if family(a) == "add" and chain.layer.node in a.all_input_nodes}
    return nodes - {last}


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fits(value: Any, like: Node) -> bool:
    return isinstance(value, Node) and shape(value) == shape(like) and value.meta["val"].dtype == like.meta["val"].dtype


def emit_chain(program: Program, chain: Chain, last: Node) -> Value:
    """A convolution or linear layer in float."""
    layer = chain.layer
    graph = program.graph
    source, weight = layer_input(program, layer.input, graph.tensor(layer.weight).float(), layer.node)
    bias = graph.tensor(layer.bias).float().numpy() if layer.bias is not None else None
    window = Window(layer.stride, layer.padding, layer.dilation, layer.groups)
    epilogue = Epilogue(
        bias=bias is not None, residual="float32" if chain.added is not None else None, clamp=chain.clamp
    )
    spec = layer_spec(source, weight.shape, window, "float32", 0, epilogue)
    constants = program.kernel(spec).constants(weight.contiguous().numpy(), bias)
    program.floating(layer.node, macs=spec.macs)
    added = [chain.added] if chain.added is not None else []
    return call_layer(program, spec, source, added, constants, shape(last))

"""Float layers: one kernel for a layer, the sum behind it and the activation behind that.

    conv -> [add ->] [relu or clamp]

Values in float16 are read and written as such: `half` behind the chain, and between layer and sum, is part of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.node import Node

from graphopt.backends.tvm.images import call_layer, layer_input, layer_spec, order_of
from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.program import Program
from graphopt.backends.tvm.schedules import Epilogue
from graphopt.ir.binary import Binary
from graphopt.ir.calls import shape
from graphopt.ir.float16 import half_of, narrows
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import clip_of
from graphopt.lowering.integers.kernels import Window
from graphopt.utils.printing import dtype_name


class Chain(NamedTuple):
    """A float layer and what its kernel does besides.

    Attributes:
        members: the calls it stands for, the last one left out.
        half: the result is float16. rounded: so is what the layer gives to the sum.
    """

    layer: Layer
    members: tuple[Node, ...]
    added: Node | None
    clamp: tuple[float | None, float | None]
    half: bool
    rounded: bool


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
        calls, added = [node], None
        clamp: tuple[float | None, float | None] = (None, None)
        rounding = _rounding(node)
        own = rounding[-1] if rounding else node
        reader = _only_reader(own)
        total = Binary.of(reader)
        if total is not None and total.kind == "add" and all(_fits(a, node) for a in total.operands):
            other = total.other(own)
            if isinstance(other, Node) and total.node not in summed:
                summed.add(total.node)
                added = other
                calls += [*rounding, total.node]
        reader = _only_reader(calls[-1])
        if reader is not None and (ends := clip_of(reader)) is not None:
            low, high = ends
            infinity = float("inf")
            clamp = (None if low == -infinity else low, None if high == infinity else high)
            calls.append(reader)
        reader = _only_reader(calls[-1])
        half = reader is not None and narrows(reader)
        if reader is not None and half:
            calls.append(reader)
        *members, last = calls
        found[last] = Chain(layer, tuple(members), added, clamp, half, bool(rounding) and added is not None)
    return found


def _rounding(node: Node) -> list[Node]:
    """The conversions to float16 and back that alone read this."""
    narrow = _only_reader(node)
    wide = _only_reader(narrow) if narrow is not None and narrows(narrow) else None
    return [narrow, wide] if narrow is not None and half_of(wide) is narrow else []  # type: ignore[list-item]


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fits(value: Any, like: Node) -> bool:
    return isinstance(value, Node) and shape(value) == shape(like) and value.meta["val"].dtype == like.meta["val"].dtype


def _dtype(node: Node) -> str:
    return dtype_name(node.meta["val"].dtype)


def _read(layer: Layer, weight: Tensor) -> Node:
    """What the kernel reads: the input in float16 where the weights, which it stores alike, lose nothing by that."""
    narrow = half_of(layer.input)
    return narrow if narrow is not None and torch.equal(weight.half().float(), weight) else layer.input


def emit_chain(program: Program, chain: Chain, last: Node) -> Value:
    """A convolution or linear layer in float."""
    layer = chain.layer
    graph = program.graph
    weight = graph.tensor(layer.weight).float()
    read = _read(layer, weight)
    source, weight = layer_input(program, read, weight, layer.node)
    bias = graph.tensor(layer.bias).float().numpy() if layer.bias is not None else None
    window = Window(layer.stride, layer.padding, layer.dilation, layer.groups)
    added = [half_of(a) or a for a in (chain.added,) if a is not None]
    epilogue = Epilogue(
        bias=bias is not None,
        residual=_dtype(added[0]) if added else None,
        clamp=chain.clamp,
        rounded="float16" if chain.rounded else None,
        dtype="float16" if chain.half else "float32",
    )
    spec = layer_spec(source, weight.shape, window, _dtype(read), 0, epilogue)
    constants = program.kernel(spec).constants(weight.contiguous().numpy(), bias)
    if spec.data == "float16":
        program.half(spec.macs)
    else:
        program.floating(layer.node, macs=spec.macs)
    out = shape(last)
    return call_layer(program, spec, source, added, constants, out, order_of(graph.tensor(layer.weight), len(out)))

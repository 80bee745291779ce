"""Integer kernels: one for a layer, the sum behind it and the function of one code behind that, and for padding in front of it.

    [pad ->] layer -> [sum ->] [table or slopes]          sum -> table

each read by the next alone, and none of them watched, which would need its codes in memory.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

from torch.fx.node import Node

from graphopt.backends.tvm import integer
from graphopt.backends.tvm.layouts import Value
from graphopt.backends.tvm.program import Program
from graphopt.ir.calls import argument, shape
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten
from graphopt.lowering.integers.fusion import Kernel

LAYERS = ("conv", "linear")


class Fused(NamedTuple):
    """A kernel and what it does besides.

    Attributes:
        pad: around what the layer reads, with codes of zero. None where there is none, as for all of these.
        first: a layer or a sum.
        sum: of the layer and something of the same shape.
        table, slopes: a function of one code.
    """

    pad: Node | None
    first: Node
    sum: Node | None
    table: Node | None
    slopes: Node | None

    @property
    def members(self) -> list[Node]:
        return [node for node in self if node is not None]

    def emit(self, program: Program) -> Value:
        """What the last of its members gives."""
        if _name(self.first) == "add":
            return integer.emit_add(program, self.first, self.table)
        return integer.emit_layer(program, self.first, self.sum, self.table, self.slopes, self.pad)


def fused(graph: Graph, watched: Set[Node], *, looked_up: bool) -> dict[Node, Fused]:
    """The last node of every kernel of several -> the kernel. Of two layers that are added, the later one adds.

    Args:
        looked_up: tables are part of kernels; else those that are more than two slopes are kernels of their own.
    """
    layers = [node for node in graph.calls() if _name(node) in LAYERS and node not in watched]
    sums = {total: layer for layer in layers if (total := _sum_behind(layer)) is not None}
    adding = {layer: total for total, layer in sums.items()}
    found = {}
    for node in graph.calls():
        if _name(node) not in (*LAYERS, "add") or node in sums:
            continue
        total = adding.get(node)
        last = total or node
        reader = _only_reader(last) if last not in watched and _gives_codes(last) else None
        table = slopes = None
        if reader is not None and looked_up and integer.entries_of(reader) is not None:
            table = reader
        elif reader is not None and _have_slopes(node, reader):
            slopes = reader
        kernel = Fused(_pad_before(node), node, total, table, slopes)
        if len(kernel.members) > 1:
            found[kernel.members[-1]] = kernel
    return found


def _name(node: Node) -> str:
    return node.target.__name__ if isinstance(node.target, Kernel) else ""


def _gives_codes(node: Node) -> bool:
    return isinstance(node.target, Kernel) and node.target.grid is not None


def _have_slopes(layer: Node, reader: Node) -> bool:
    """Is this a function of two slopes, for all channels or for each of the layer's?"""
    slopes = integer.slopes_of(reader) if _name(layer) in LAYERS else None
    if slopes is None:
        return False
    function: Any = layer.target.function  # type: ignore[union-attr]
    return len(slopes.positive) == 1 or function.channel_dim % len(shape(reader)) == 1


def _pad_before(layer: Node) -> Node | None:
    """Padding of codes, of the image alone, that this layer alone reads."""
    pad: Any = layer.args[0]
    kernel: Any = layer.target
    if _name(layer) != "conv" or pad.target is not aten.constant_pad_nd.default or len(pad.users) != 1:
        return None
    pads, dims = argument(pad, "pad"), kernel.function.weight.dim() - 2
    around_image = min(pads) >= 0 and not any(pads[2 * dims :])
    return pad if around_image and argument(pad, "value") == kernel.grids[0].zero_point else None


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _sum_behind(layer: Node) -> Node | None:
    """The integer sum that alone reads an integer layer, and adds something else of the same shape."""
    reader = _only_reader(layer)
    if reader is None or _name(reader) != "add" or not _gives_codes(layer):
        return None
    others = [a for a in reader.all_input_nodes if a is not layer]
    return reader if len(others) == 1 and shape(others[0]) == shape(layer) else None

"""What a call of a graph from a file may take, told from shapes before anything runs: a small file can ask for a huge tensor.

    memory   bytes of values that are held at once                                   <= max(2^30, 2^10 bytes of the file)
    work     multiply-accumulates, and elements, each of which counts as 64 of them  <= max(2^38, 2^20 bytes of the file)

Bytes of the file are those of its tensors, constants and example. Networks stay far below: EDSR (16 blocks of 64 channels) for
128 x 128 pixels, whose file is small for what it computes, holds 22 bytes of values for each of them, and its work is 6400. Free
sizes are those of the example, which a first call has.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.ir.cost import products
from graphopt.ir.graph import Graph
from graphopt.ir.shapes import is_free, sizes_of
from graphopt.ir.structure import tensors
from graphopt.utils.errors import InputError

ROOM, ROOM_OF_BYTE = 2**30, 2**10  # bytes
WORK, WORK_OF_BYTE = 2**38, 2**20  # multiply-accumulates
OF_ELEMENT = 64  # as many take as long as computing and writing one element


def check_bounds(graph: Graph, size: int) -> None:
    """Raise `InputError` where a call with the example's sizes would take too much; names the operator that does.

    Args:
        size: bytes of the tensors that the file holds.
    """
    bounds = _Bounds(graph)
    room, work = max(ROOM, ROOM_OF_BYTE * size), max(WORK, WORK_OF_BYTE * size)
    last = {read: node for node in graph.nodes for read in node.all_input_nodes}
    held = spent = 0
    for node in graph.nodes:
        if node.op == "call_function":
            held += bounds.memory(node)
            spent += bounds.work(node)
            if held > room or spent > work:
                needs = f"{held:.1e} bytes at once" if held > room else f"{spent:.1e} multiply-accumulates"
                allowed = room if held > room else work
                raise InputError(
                    f"{node.name}: up to this {node.target} a call needs {needs}, beyond the {allowed:.1e} that a file with "
                    f"{size} bytes of tensors may ask for; capture the model again if it is meant to"
                )
        held -= sum(bounds.memory(read) for read in node.all_input_nodes if last[read] is node)


class _Bounds:
    def __init__(self, graph: Graph) -> None:
        names = {name: symbol for symbol, name in graph.size_names.items()}
        numbers = sizes_of(graph.free_sizes, graph.example.tensors())
        self.known = {names[s.name]: n for s, n in zip(graph.free_sizes, numbers, strict=True) if s.name in names}

    def memory(self, node: Node) -> int:
        """Bytes of what a call makes. Views count as copies: what reads them takes as long."""
        if node.op != "call_function":
            return 0
        return sum(self._elements(t) * t.element_size() for t in tensors(node.meta.get("val")))

    def work(self, node: Node) -> int:
        lengths = ([self._number(n.meta["val"].shape[d]) for n, d in product] for product in products(node))
        return sum(map(math.prod, lengths)) + OF_ELEMENT * sum(map(self._elements, tensors(node.meta.get("val"))))

    def _elements(self, value: Tensor) -> int:
        return math.prod(map(self._number, value.shape))

    def _number(self, size: Any) -> int:
        return int(size.node.expr.xreplace(self.known)) if is_free(size) else int(size)

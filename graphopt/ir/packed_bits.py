"""Bits packed into bytes at the output of a graph: appended by a pass, found again by whoever trains them.

    bits  = scores > 0                           [N, bits]
    bytes = sum_j 2^(7 - j) bits[:, 8 i + j]     uint8 [N, bits / 8], what `numpy.packbits` gives

The sum is one of whole numbers up to 255 in float32, which every runtime computes exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx.node import Node

from graphopt.ir.calls import operand
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten

CHAIN = (aten.to.dtype, aten.sum.dim_IntList, aten.mul.Tensor, aten.view.default, aten.to.dtype, aten.gt.Scalar)


@dataclass(frozen=True)
class PackedBits:
    """An output of packed bits.

    Attributes:
        packed: the output, uint8 [N, bits / 8].
        scores: what the bits are the signs of, float [N, bits].
    """

    packed: Node
    scores: Node

    @classmethod
    def of(cls, node: Node) -> PackedBits | None:
        """The view of a node that `append` made; None of any other."""
        at = node
        for target in CHAIN:
            if at.op != "call_function" or at.target is not target:
                return None
            at = operand(at)
        return cls(node, at) if node.args[1] == torch.uint8 else None


def packed_outputs(graph: Graph) -> list[PackedBits]:
    """The outputs of a graph that are packed bits, in order."""
    return [found for node in graph.outputs if (found := PackedBits.of(node)) is not None]


def append(graph: Graph, scores: Node, bits: int, output: Node) -> Node:
    """Let the signs of `scores` (float [N, bits], a multiple of 8) stand in the place of the output `output`, packed."""
    end = graph.output
    places = graph.add_constant("packed_bits.places", 2.0 ** torch.arange(7, -1, -1), before=end)
    signs = graph.call(aten.gt.Scalar, scores, 0, before=end, like=scores)
    numbers = graph.call(aten.to.dtype, signs, torch.float32, before=end, like=scores)
    parts = graph.call(aten.view.default, numbers, [-1, bits // 8, 8], before=end, like=scores)
    placed = graph.call(aten.mul.Tensor, parts, places, before=end, like=scores)
    summed = graph.call(aten.sum.dim_IntList, placed, [-1], before=end, like=scores)
    packed = graph.call(aten.to.dtype, summed, torch.uint8, before=end, like=scores)
    end.replace_input_with(output, packed)
    return packed

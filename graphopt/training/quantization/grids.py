"""The uniform grids of a graph that training may move: each with the quantizers that share it.

Scales of biases are expressions of two grids and follow them; scales of blocks stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx.node import Node

from graphopt.execution.executor import constant_calls
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, Layer
from graphopt.ir.quantizers import UniformQuantizer

WIDEST = 2**17  # codes; what has more is a bias


@dataclass(frozen=True)
class Grid:
    """A scale, and the quantizers that round to its multiples.

    Attributes:
        scale: the constant.
        quantizers: what rounds to it, in execution order.
        layers: those whose weights it is for; none where it is one of activations.
    """

    scale: Node
    quantizers: tuple[UniformQuantizer, ...]
    layers: tuple[Layer, ...]

    @property
    def of_weights(self) -> bool:
        return bool(self.layers)

    @property
    def codes(self) -> tuple[int, int]:
        """The first and last code."""
        return self.quantizers[0].low, self.quantizers[0].high

    @property
    def symmetric(self) -> bool:
        """Whether the grid lies evenly around zero."""
        low, high = self.codes
        return low == -high


def grids(graph: Graph) -> list[Grid]:
    """The grids of activations and weights, in execution order."""
    fixed = constant_calls(graph.nodes)
    shared: dict[Node, list[UniformQuantizer]] = {}
    for node in graph.calls():
        found = UniformQuantizer.of(node)
        if found is not None and not found.block and found.high - found.low < WIDEST and graph.is_constant(found.scale):
            shared.setdefault(found.scale, []).append(found)
    made = []
    for scale, quantizers in shared.items():
        layers = [layer for q in quantizers for user in q.node.users if (layer := _reads_as_weight(user, q.node))]
        constant = [q.node in fixed for q in quantizers]
        if all(constant) == bool(layers):  # other constants on grids stay where they are
            made.append(Grid(scale, tuple(quantizers), tuple(layers)))
    return made


def rounded_weights(graph: Graph) -> list[UniformQuantizer]:
    """The quantizers of layers' weights whose rounding goes straight through, their scales learned or not."""
    found = []
    for node in graph.calls():
        quantizer = UniformQuantizer.of(node)
        if quantizer is not None and not quantizer.block and any(_reads_as_weight(user, node) for user in node.users):
            found.append(quantizer)
    return [quantizer for quantizer in found if graph.is_constant(quantizer.value)]


def _reads_as_weight(user: Node, quantizer: Node) -> Layer | None:
    layer = Layer.of(user)
    return layer if layer is not None and user.args[WEIGHT] is quantizer else None

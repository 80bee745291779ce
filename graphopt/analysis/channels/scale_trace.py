"""The trace for scales: labels of channels that share a positive factor.

A value v may be stored as v / s, with one s > 0 for each label, where whatever reads it makes up for s:

    layers           rows of weight and bias are divided by the factors of the labels they write, columns are multiplied by
                     those of the labels they read; so a depthwise layer, too, reads other labels than it writes
    data movement    as for any trace, but labels that come to lie over several dimensions (a channel shuffle between its two
                     reshapes) stay whole until they lie along one again
    homogeneous      f(x / s) = f(x) / s: labels pass
    parameters       an addend, a batch norm's mean and bias, the ends of a clip are divided, too: labels pass, and the parameter
                     is noted
    sums, joins      tie labels where operands meet

Whatever else reads a label pins it: its factor is 1. The rules by operator are in `scale_rules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.labels import Array
from graphopt.analysis.channels.trace import Dims, Trace, call_on_labels, lies, sizes
from graphopt.ir.calls import operand, value
from graphopt.ir.graph import Graph


@dataclass(frozen=True)
class Site:
    """A call, and the label of each channel that it writes, reads, or has a parameter for.

    Attributes:
        dim: the dimension of the call's result (of a reading layer, its input) that counts the channels.
        position: of the parameter among the call's arguments, where it is one.
    """

    node: Node
    labels: Array
    dim: int
    position: int = 0


class ScaleTrace(Trace):
    """The labels of a graph under scaling.

    Attributes:
        writes: layers, and their output channels.
        reads: layers, and their input channels, where those have labels.
        parameters: what is divided with the value it meets.
        clips: clips from zero to a number, which would need an end for each channel.
        grids: results whose labels lie over several dimensions, as they lie.
    """

    unfollowed = "which does not keep a factor in front of its input"

    def __init__(self, graph: Graph) -> None:
        self.writes: list[Site] = []
        self.reads: list[Site] = []
        self.parameters: list[Site] = []
        self.clips: list[Site] = []
        self.grids: dict[tuple[Node, int], Tensor] = {}
        super().__init__(graph)

    def rule(self, node: Node) -> Any:
        from graphopt.analysis.channels.scale_rules import rule

        return rule(node)

    def constant(self, tensor: Tensor) -> Dims:
        """None: a constant has the labels of what reads it."""
        return [[] for _ in tensor.shape]

    # ---- Labels over several dimensions -----------------------------------------------------------------------------

    def move(self, node: Node) -> list[Dims]:
        whole = self.grids.get((operand(node), 0))
        if whole is None:
            return super().move(node)
        return [self.read(node, i, moved, 1) for i, moved in enumerate(call_on_labels(self.graph, node, whole))]

    def read(self, node: Node, position: int, moved: Tensor, before: int) -> Dims:
        dims: Dims = [[] for _ in moved.shape]
        if not moved.dim() or moved.numel() == 0:
            return dims
        along, line = lies(moved)
        if len(along) > 1:
            shape = [size if d in along else 1 for d, size in enumerate(moved.shape)]
            self.grids[node, position] = line.clone().reshape(shape).expand(moved.shape)
            return dims
        dim = along[0] if along else min(before, moved.dim() - 1)  # one label for all: it lies along any dimension
        dims[dim] = [line.expand(moved.shape[dim]).numpy().copy()]
        return dims

    def of(self, node: Any) -> Dims:
        """One column at most: an element has one factor."""
        dims, reason = super().of(node), f"{node.name}, where they lie over several dimensions"
        self._pin_grid(node, 0, reason)
        if sum(map(len, dims)) <= 1:
            return dims
        for columns in dims:
            self.labels.pin(columns, reason)
        return [[] for _ in dims]

    def fix(self, reader: Node, reason: str) -> None:
        super().fix(reader, reason)
        for source, position in self.grids:
            if source in reader.all_input_nodes:
                self._pin_grid(source, position, reason)

    def _pin_grid(self, node: Node, position: int, reason: str) -> None:
        if (whole := self.grids.get((node, position))) is not None:
            self.labels.pin([whole.flatten().numpy()], reason)

    # ---- For rules --------------------------------------------------------------------------------------------------

    def along(self, node: Node, dim: int, reader: Node) -> Array | None:
        """The labels along one dimension, if any. What lies along others does not pass the reader and is pinned."""
        dims = self.of(node)
        for d, columns in enumerate(dims):
            if d != dim:
                self.pin(columns, reader)
        return dims[dim][0] if dims[dim] else None

    def parameter(self, node: Node, source: Node, position: int) -> bool:
        """Note a constant that is divided with the labels of `source`, which it meets aligned from the right."""
        constant, dims = operand(node, position), self.of(source)
        size = sizes(value(constant)) if self.graph.is_constant(constant) else []
        for d, columns in enumerate(dims):
            back = len(dims) - d
            if columns and (back > len(size) or size[-back] != sizes(value(source))[d]):
                return False
        self.parameters += [Site(node, c, d, position) for d, columns in enumerate(dims) for c in columns]
        return True

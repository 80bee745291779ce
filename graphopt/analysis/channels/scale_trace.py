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

Whatever else reads a label pins it: its factor is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels import movement as moves
from graphopt.analysis.channels import rules, windows
from graphopt.analysis.channels.labels import Array
from graphopt.analysis.channels.trace import LIKE, Dims, Trace, call_on_labels, lies, sizes
from graphopt.ir.graph import Graph
from graphopt.ir.layer import BIAS, BatchNorm, Layer
from graphopt.ir.ops import argument, aten, clip_of, info, operand, value
from graphopt.ir.rules import Rules

RUNNING_MEAN = 3  # among the arguments of batch norm; its bias is where a layer's is


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
        if (own := RULES.find(node)) is not None:
            return own
        known = info(node)
        if known.layer:
            return layer
        if (ends := clip_of(node)) is not None and ends[0] == 0.0:
            return clip if ends[1] < np.inf else keep
        if known.pointwise:
            return keep if known.homogeneous else None
        if known.homogeneous or rules.is_movement(node):
            return rules.rule(node) or (within if known.within_channels else None)
        return None

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


def layer(trace: ScaleTrace, node: Node) -> Dims | None:
    """Labels of the input are read, the output starts new ones."""
    found = Layer.of(node)
    assert found is not None
    if not all(trace.graph.is_constant(n) for n in (found.weight, found.bias) if n is not None):
        trace.fix(node, f"{node.name}, whose weight or bias is computed")
        return None
    channel = len(sizes(value(found.input))) - 1 - found.dims
    if (column := trace.along(found.input, channel, node)) is not None:
        trace.reads.append(Site(node, column, channel))
    labels = trace.labels.fresh(found.out_channels)
    trace.writes.append(Site(node, labels, found.channel_dim))
    return [[labels] if d == found.channel_dim else [] for d in range(len(sizes(value(node))))]


def keep(trace: ScaleTrace, node: Node) -> Dims:
    """A homogeneous function of each element."""
    source = operand(node)
    if (source, 0) in trace.grids:
        trace.grids[node, 0] = trace.grids[source, 0]
        return [[] for _ in value(node).shape]
    return trace.of(source)


def clip(trace: ScaleTrace, node: Node) -> Dims:
    """max(0, min(x, end)): the end is divided, too."""
    dims = trace.of(node.args[0])
    trace.clips += [Site(node, column, d) for d, columns in enumerate(dims) for column in columns]
    return dims


def channel_clip(trace: ScaleTrace, node: Node) -> Dims | None:
    """A clip whose ends are tensors: constants, or nothing."""
    source = operand(node)
    ends = [position for position, end in enumerate(node.args) if position and end is not None]
    if node.kwargs or not all(trace.parameter(node, source, position) for position in ends):
        trace.fix(node, f"{node.name}, whose ends are not one constant for each channel")
        return None
    return trace.of(source)


def add(trace: ScaleTrace, node: Node) -> Dims | None:
    """Operands of one shape are tied; a constant with an element for each channel is divided with what it is added to."""
    operands = [a for a in node.args[:2] if isinstance(a, Node) and isinstance(value(a), Tensor)]
    if len(operands) == 2:
        constants = [trace.graph.is_constant(a) for a in operands]
        if sum(constants) == 1:
            source = operands[constants.index(False)]
            same = sizes(value(source)) == sizes(value(node))
            if same and trace.parameter(node, source, constants.index(True)):
                return trace.of(source)
        elif sizes(value(operands[0])) == sizes(value(operands[1])):
            dims, others = (trace.of(a) for a in operands)
            for one, other in zip(dims, others, strict=True):
                trace.tie(one, other, node)
            return dims
    trace.fix(node, f"{node.name}, which adds what has no factor for each channel")
    return None


def multiply(trace: ScaleTrace, node: Node) -> Dims | None:
    """Of two factors one keeps its labels: the first with labels and the shape of the result. A divisor keeps none."""
    operands = [a for a in node.args[:2] if isinstance(a, Node) and isinstance(value(a), Tensor)]
    shaped = [a for a in operands if sizes(value(a)) == sizes(value(node)) and any(trace.of(a))]
    main = shaped[0] if shaped and operands.count(shaped[0]) == 1 else None
    if info(node).family == "div" and main is not node.args[0]:
        main = None
    for other in operands:
        if other is not main:
            for columns in trace.of(other):
                trace.pin(columns, node)
    return trace.of(main) if main is not None else None


def batch_norm(trace: ScaleTrace, node: Node) -> Dims | None:
    """(x - mean) / deviation * weight + bias: mean and bias are divided, the deviation stays."""
    norm = BatchNorm.of(node)
    if norm is None or node.kwargs:
        trace.fix(node, f"{node.name}, which takes statistics of the batch")
        return None
    dims = within(trace, node)
    for position in (BIAS, RUNNING_MEAN):
        if isinstance(node.args[position], Node):
            trace.parameters += [Site(node, column, 1, position) for column in dims[1]]
    return dims


def within(trace: ScaleTrace, node: Node) -> Dims:
    """A homogeneous function of each channel."""
    column = trace.along(operand(node), 1, node)
    return [[column] if d == 1 and column is not None else [] for d in range(len(sizes(value(node))))]


def mean(trace: ScaleTrace, node: Node) -> Any:
    """Averages keep the labels along the dimensions that are left."""
    dims, left = trace.of(node.args[0]), rules.reduce(trace, node)
    over: Any = argument(node, "dim")
    for d in range(len(dims)) if over in (None, []) else over:
        trace.pin(dims[d], node)
    return left


def take(trace: ScaleTrace, node: Node) -> Dims:
    """One result of a call with several."""
    source, position = node.args
    if (source, position) in trace.grids:
        trace.grids[node, 0] = trace.grids[source, position]  # type: ignore[index]
    return moves.take(trace, node)


RULES: Rules[Any] = Rules()
"""Where being homogeneous or a data movement does not say enough."""

for _rule, _keys in (
    (channel_clip, ["channel_clamp"]),
    (add, ["add", "sub"]),
    (multiply, ["mul", "div"]),
    (batch_norm, ["batch_norm"]),
    (mean, ["mean"]),
    (keep, ["identity"]),
    (take, ["getitem"]),
    (moves.movement, [
        "expand", "roll", aten.index.Tensor, *LIKE,
    ]),
    (moves.concat, ["concat"]),
    (moves.stack, ["stack"]),
    (moves.slice_scatter, [aten.slice_scatter.default]),
    (windows.unfold, [aten.im2col.default]),
):  # fmt: skip
    RULES.of(*_keys)(_rule)

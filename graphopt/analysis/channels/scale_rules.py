"""What each operator means for scales: the rules of `ScaleTrace`, by family; `rules.py` says what a rule is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx.node import Node

from graphopt.analysis.channels import movement as moves
from graphopt.analysis.channels import rules, windows
from graphopt.analysis.channels.scale_trace import ScaleTrace, Site
from graphopt.analysis.channels.trace import LIKE, Dims, sizes
from graphopt.ir.binary import Binary
from graphopt.ir.calls import argument, operand, value
from graphopt.ir.layer import BIAS, BatchNorm, Layer
from graphopt.ir.ops import aten, clip_of, info
from graphopt.ir.rules import Rules

RUNNING_MEAN = 3  # among the arguments of batch norm; its bias is where a layer's is
Rule = Callable[[ScaleTrace, Node], Any]


def rule(node: Node) -> Rule | None:
    """The rule of a call; None where its operator keeps no factor in front of its input."""
    if (own := RULES.find(node)) is not None:
        return own
    traits = info(node)
    if traits.layer:
        return layer
    if (ends := clip_of(node)) is not None and ends[0] == 0.0:
        return clip if ends[1] < np.inf else keep
    if traits.pointwise:
        return keep if traits.homogeneous else None
    if traits.homogeneous or rules.is_movement(node):
        return rules.rule(node) or (within if traits.within_channels else None)
    return None


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
    total = Binary.of(node)
    operands = total.tensors if total is not None else []
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
    product = Binary.of(node)
    assert product is not None
    operands = product.tensors
    shaped = [a for a in operands if sizes(value(a)) == sizes(value(node)) and any(trace.of(a))]
    main = shaped[0] if shaped and operands.count(shaped[0]) == 1 else None
    if product.kind == "div" and main is not product.left:
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


RULES: Rules[Rule] = Rules("scales")
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

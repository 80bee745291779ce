"""Rules of normalisations. Where statistics are taken over channels, removing one changes them; the trace notes that."""

from __future__ import annotations

from torch.fx.node import Node

from graphopt.analysis.channels.contractions import grid
from graphopt.analysis.channels.labels import Columns
from graphopt.analysis.channels.trace import Dims, Trace
from graphopt.ir.calls import argument, operand, value


def batch_norm(trace: Trace, node: Node) -> Dims:
    """Statistics per channel, over all other dimensions."""
    dims = trace.of(node.args[0])
    for parameter in node.args[1:5]:
        if isinstance(parameter, Node):
            trace.tie(dims[1], trace.of(parameter)[0], node)
    if argument(node, "training") or node.args[3] is None:
        _over(trace, node, [c for d, c in enumerate(dims) if d != 1])
    return dims


def instance_norm(trace: Trace, node: Node) -> Dims:
    """Statistics per sample and channel."""
    dims = trace.of(node.args[0])
    for parameter in node.args[1:5]:
        if isinstance(parameter, Node):
            trace.tie(dims[1], trace.of(parameter)[0], node)
    _over(trace, node, dims[2:])
    return dims


def layer_norm(trace: Trace, node: Node) -> Dims:
    """Statistics over the last dimensions."""
    dims = trace.of(node.args[0])
    count = len(argument(node, "normalized_shape"))
    for name in ("weight", "bias"):
        parameter = argument(node, name) if name == "weight" or "layer" in str(node.target) else None
        if isinstance(parameter, Node):
            for columns, own in zip(dims[-count:], trace.of(parameter), strict=True):
                trace.tie(columns, own, node)
    _over(trace, node, dims[-count:])
    return dims


def group_norm(trace: Trace, node: Node) -> Dims:
    """Statistics over a group of channels: a whole group may go without a trace, one channel of each changes them."""
    dims = trace.of(node.args[0])
    for name in ("weight", "bias"):
        if isinstance(parameter := argument(node, name), Node):
            trace.tie(dims[1], trace.of(parameter)[0], node)
    channels, groups = value(operand(node)).shape[1], argument(node, "num_groups")
    if groups < channels:
        _, inner = grid(trace, node, dims[1], groups, channels)
        _over(trace, node, [inner, *dims[2:]])
    return dims


def _over(trace: Trace, node: Node, dims: list[Columns]) -> None:
    trace.statistics += [(columns, node) for columns in dims if columns]

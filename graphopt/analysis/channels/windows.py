"""Rules of operators that look at windows in space: channels in front are kept apart, space itself stays."""

from __future__ import annotations

import re
from math import prod

import numpy as np
from torch import Tensor
from torch.fx.node import Node

from graphopt.analysis.channels.contractions import grid
from graphopt.analysis.channels.trace import Dims, Trace, sizes
from graphopt.ir.calls import argument, value


def spatial(trace: Trace, node: Node) -> Dims:
    """Pooling, resizing, reflecting: the last dimensions stay, those in front are kept apart."""
    count = int(re.findall(r"(\d)d", str(node.target))[-1])
    dims = trace.of(node.args[0])
    for columns in dims[-count:]:
        trace.pin(columns, node)
    for other in node.all_input_nodes:
        if other is not node.args[0] and isinstance(value(other), Tensor):
            for columns in trace.of(other):
                trace.pin(columns, node)
    found = value(node)
    results = [found] if isinstance(found, Tensor) else list(found)
    front = [[*dims[:-count], *([[]] * (r.dim() - len(dims) + count))] for r in results]
    return front[0] if isinstance(found, Tensor) else front  # type: ignore[return-value]


def unfold(trace: Trace, node: Node) -> Dims:
    """[N, C, H, W] -> [N, C k k, windows]: every channel, once for each place in a window."""
    *front, channels, height, width = trace.of(node.args[0])
    for columns in (height, width):
        trace.pin(columns, node)
    return [*front, [np.repeat(c, prod(argument(node, "kernel_size"))) for c in channels], []]


def fold(trace: Trace, node: Node) -> Dims:
    """[N, C k k, windows] -> [N, C, H, W]: windows are summed where they overlap."""
    *front, channels, windows = trace.of(node.args[0])
    trace.pin(windows, node)
    count = sizes(value(node))[-3]
    rows, places = grid(trace, node, channels, count, count * prod(argument(node, "kernel_size")))
    trace.pin(places, node)
    return [*front, rows, [], []]

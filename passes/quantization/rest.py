"""What computes in no integer, in floating point of 16 bits: what such a call reads and what it answers are rounded."""

from __future__ import annotations

from torch.fx.node import Node

from graphopt.formats import FloatFormat
from graphopt.ir.calls import is_float
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.ir.quantizers import is_quantizer


def round_rest(graph: Graph, calls: list[Node], format: FloatFormat) -> list[Change]:
    """Put a quantizer on every edge into these calls, and behind each of them.

    Args:
        calls: in execution order.
    """
    rounded: dict[Node, Node] = {}  # value or constant -> what its float readers see
    for call in calls:
        for source in dict.fromkeys(call.all_input_nodes):
            if is_float(source) or is_quantizer(source):  # those just put in have no type yet
                if source not in rounded:
                    rounded[source] = _quantizer(graph, source, format, before=_ready(graph, source, call))
                call.replace_input_with(source, rounded[source])
        behind = _quantizer(graph, call, format, before=graph.after(call))
        for user in [user for user in call.users if user is not behind]:
            user.replace_input_with(call, behind)
        rounded[behind] = behind
    return [Change(graph.site(call), f"computes in {format}") for call in calls]


def _ready(graph: Graph, source: Node, call: Node) -> Node:
    """Where its quantizer goes: behind a value, for all of its readers; a constant's in front of the first."""
    return call if graph.is_constant(source) else graph.after(source)


def _quantizer(graph: Graph, source: Node, format: FloatFormat, *, before: Node) -> Node:
    return graph.call(format.operator, source, *format.arguments((), -1), before=before, like=source)

"""Operators between conversions, computed in float16.

    half(op(float(a), float(b)))   ->   op(a, b)          a, b: float16 values or constants

What is left converts: in front of quantizers, whose scales are float32, and at the ends of the model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from graphopt.ir.calls import is_float
from graphopt.ir.float16 import half_of, narrows
from graphopt.ir.graph import Graph
from graphopt.ir.ops import aten


def compute_in_half(graph: Graph) -> None:
    """Rewrite a deployed graph in place."""
    for node in graph.calls(aten.to.dtype):
        source: Any = node.args[0]
        if not narrows(node):
            continue
        if (narrow := half_of(source)) is not None:
            graph.replace(node, narrow)
        elif source.op == "call_function" and len(source.users) == 1 and isinstance(source.meta["val"], Tensor):
            inputs = [n for n in source.all_input_nodes if is_float(n)]
            if inputs and all(half_of(n) is not None for n in inputs):
                args, kwargs = fx.node.map_arg((source.args, source.kwargs), lambda n: half_of(n) or n)
                call = graph.call(source.target, *args, before=node, like=source, **kwargs)
                call.meta["val"] = source.meta["val"].half()
                graph.replace(node, call)
    graph.module.graph.eliminate_dead_code()

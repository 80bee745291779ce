"""TVM's `lower`, imported when it is called: tests that skip without TVM are collected without it, too."""

from __future__ import annotations

from typing import Any

from graphopt.ir.graph import Graph
from graphopt.targets import Target


def lower_through_tvm(graph: Graph, target: Target, **options: Any) -> Any:
    """See `graphopt.backends.tvm.lower`."""
    from graphopt.backends.tvm import lower

    return lower(graph, target, **options)

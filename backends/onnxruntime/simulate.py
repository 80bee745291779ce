"""The integers of ONNX Runtime's kernels in torch: see `graphopt.lowering.integers.simulation`."""

from __future__ import annotations

from functools import partial

from graphopt.backends.onnxruntime.artifact import intermediate
from graphopt.backends.onnxruntime.legalize import legalize
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target


def simulate(graph: Graph, target: Target, machine: str | None = None) -> Simulation:
    """See `graphopt.simulate`."""
    runtime = target.runtime
    return Simulation(
        graph,
        machine or runtime.machine or runtime.architecture,
        partial(legalize, plain=runtime.vendor_compiler),
        intermediate,
        half=target.formats.rest is not None,
    )

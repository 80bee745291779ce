"""The integers of TVM's kernels in torch: see `graphopt.integers.simulation`."""

from __future__ import annotations

from graphopt.backends.tvm.artifact import intermediate
from graphopt.backends.tvm.emit import ARITHMETIC, speak
from graphopt.errors import InputError
from graphopt.graph import Graph
from graphopt.integers.simulation import Simulation
from graphopt.targets import Target


def simulate(graph: Graph, target: Target, machine: str | None = None) -> Simulation:
    """See `graphopt.simulate`. The kernels compute alike on every CPU, so there is no machine to choose."""
    if machine not in (None, target.architecture):
        raise InputError(f"TVM kernels compute the same integers on every CPU; leave out machine={machine!r}")
    return Simulation(graph, ARITHMETIC, speak, intermediate)

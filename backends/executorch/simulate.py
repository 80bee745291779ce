"""The integers of XNNPACK's kernels in torch: see `graphopt.lowering.integers.simulation`."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.artifacts.sliced import Arrays
from graphopt.backends.executorch.artifact import MODEL, ExecutorchArtifact
from graphopt.backends.executorch.compiling import Delegated
from graphopt.backends.executorch.form import legalize
from graphopt.backends.executorch.lowering import formed
from graphopt.backends.executorch.programs import exported
from graphopt.backends.executorch.running import Program
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.fusion import QUANTIZE
from graphopt.lowering.integers.simulation import Simulation
from graphopt.lowering.names import value_names
from graphopt.targets import Target
from graphopt.utils.errors import InputError

ARITHMETIC = "xnnpack"  # in graphopt.lowering.integers.machines


def simulate(graph: Graph, target: Target, machine: str | None = None) -> Simulation:
    """See `graphopt.simulate`. XNNPACK computes the same integers on every CPU, so there is no machine to choose.

    Raises:
        InputError: a machine is given, or values have codes of more than 8 bits.
    """
    if machine not in (None, ARITHMETIC, target.runtime.architecture):
        raise InputError(f"XNNPACK computes the same integers on every CPU; leave out machine={machine!r}")
    return Simulation(graph, ARITHMETIC, legalize, intermediate, everywhere=True)


def intermediate(
    artifact: ExecutorchArtifact, names: list[str], inputs: Arrays
) -> tuple[Arrays, dict[str, np.ndarray[Any, Any]]]:
    """What a model answers, and codes inside it by their name in the simulation, from a program that returns them as well."""
    lowered = artifact.lowered_graph()
    graph = formed(lowered, len(inputs[0]) if lowered.dynamic_batch else None)
    watched = {name: node for node, name in value_names(graph).items() if name in names and node.target is QUANTIZE}
    program, _ = exported(graph, watched)
    found = Program(Delegated(program).content(), MODEL)(inputs, artifact.threads)
    count = len(graph.outputs)
    return found[:count], dict(zip(watched, found[count:], strict=True))

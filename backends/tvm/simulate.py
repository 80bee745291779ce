"""The integers of TVM's kernels in torch: see `graphopt.lowering.integers.simulation`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.artifacts.sliced import Arrays
from graphopt.backends.tvm.artifact import TvmArtifact, call
from graphopt.backends.tvm.build import Code, build, kernels_of
from graphopt.backends.tvm.emit import ARITHMETIC, legalize
from graphopt.backends.tvm.lowering import compiled
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.lowering.static_batch import fix_batch
from graphopt.targets import Target
from graphopt.utils.errors import InputError


def simulate(graph: Graph, target: Target, machine: str | None = None) -> Simulation:
    """See `graphopt.simulate`. The kernels compute alike on every CPU, so there is no machine to choose."""
    if machine not in (None, target.runtime.architecture):
        raise InputError(f"TVM kernels compute the same integers on every CPU; leave out machine={machine!r}")
    return Simulation(graph, ARITHMETIC, legalize, intermediate, everywhere=True)


def intermediate(
    artifact: TvmArtifact, names: list[str], inputs: Arrays
) -> tuple[Arrays, dict[str, np.ndarray[Any, Any]]]:
    """What a model answers, and codes inside it by their name in the simulation, from a build that returns them as well."""
    lowered = artifact.lowered_graph()
    graph = fix_batch(lowered, len(inputs[0])) if lowered.dynamic_batch else lowered
    code = artifact.code
    described = Code.from_dict(code)
    emitted = compiled(graph, described, names)
    kernels = kernels_of(emitted.module, described)
    main = relax.VirtualMachine(build(kernels, described), tvm.cpu())["main"]
    found = call(main, inputs)
    return found[: len(graph.outputs)], dict(zip(emitted.names, found[len(graph.outputs) :], strict=True))

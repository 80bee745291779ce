"""ExecuTorch as a backend."""

from __future__ import annotations

from graphopt.artifacts.backend import Backend
from graphopt.backends.executorch.artifact import audit, load
from graphopt.backends.executorch.lowering import check_graph, lower
from graphopt.backends.executorch.simulate import simulate
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy as deploy_with
from graphopt.targets import Target


def deploy(graph: Graph, target: Target) -> Graph:
    """A deployed copy of a simulated graph."""
    return deploy_with(graph)


BACKEND = Backend(
    name="executorch",
    lower=lower,
    load=load,
    audit=audit,
    simulate=simulate,
    deploy=deploy,
    check_graph=check_graph,
)

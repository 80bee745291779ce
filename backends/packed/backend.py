"""Packed codes as a backend; `artifact.py` does the work."""

from __future__ import annotations

from pathlib import Path

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.backend import Backend, Tuning
from graphopt.artifacts.manifest import Manifest
from graphopt.backends.packed import artifact as artifacts
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target


class Packed(Backend):
    """See `graphopt.backends.packed`."""

    name = "packed"

    def deploy(self, graph: Graph, target: Target) -> Graph:
        return artifacts.deploy(graph, target)

    def lower(self, graph: Graph, target: Target, *, name: str = "model", tuning: Tuning | None = None) -> Artifact:
        if tuning is not None:
            self.check_tuning(target, tuning)
        return artifacts.lower(graph, target, name=name)

    def load(self, folder: Path, manifest: Manifest) -> Artifact:
        return artifacts.load(folder, manifest)

    def audit(self, artifact: Artifact) -> Audit:
        return artifacts.audit(artifact)  # type: ignore[arg-type]  # it made the artifact

    def simulate(self, graph: Graph, target: Target, machine: str | None = None) -> Simulation:
        return artifacts.simulate(graph, target, machine)


BACKEND = Packed()

"""TVM as a backend; the files beside do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.backend import Backend, Tuning
from graphopt.artifacts.manifest import Manifest
from graphopt.backends.tvm import artifact as artifacts
from graphopt.backends.tvm import connection, float16, lowering
from graphopt.backends.tvm.simulate import simulate as simulate_integers
from graphopt.backends.tvm.static import check_only_batch
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target


class Tvm(Backend):
    """See `graphopt.backends.tvm`."""

    name = "tvm"
    runs_on_devices = True
    tunes = True

    def deploy(self, graph: Graph, target: Target) -> Graph:
        return float16.deploy(graph, target)

    def lower(self, graph: Graph, target: Target, *, name: str = "model", tuning: Tuning | None = None) -> Artifact:
        return lowering.lower(graph, target, name=name, **_keywords(tuning))

    def load(self, folder: Path, manifest: Manifest) -> Artifact:
        return artifacts.load(folder, manifest)

    def audit(self, artifact: Artifact) -> Audit:
        return artifacts.audit(artifact)  # type: ignore[arg-type]  # it made the artifact

    def simulate(self, graph: Graph, target: Target, machine: str | None = None) -> Simulation:
        return simulate_integers(graph, target, machine)

    def connect(self, device: str, target: Target) -> Any:
        return connection.connect(device, target)

    def check_graph(self, graph: Graph, target: Target) -> None:
        check_only_batch(graph)

    def check_tuning(self, target: Target, tuning: Tuning) -> None:
        lowering.check_tuning(target, **_keywords(tuning))


def _keywords(tuning: Tuning | None) -> dict[str, Any]:
    if tuning is None:
        return {}
    options = {"tune": tuning.budget, "tune_database": tuning.database, "device": tuning.device}
    return options | ({} if tuning.tuner is None else {"tuner": tuning.tuner})


BACKEND = Tvm()

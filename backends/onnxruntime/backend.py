"""ONNX Runtime as a backend; the files beside do the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.audit import Audit
from graphopt.artifacts.backend import Backend, Tuning
from graphopt.artifacts.manifest import Manifest
from graphopt.backends.onnxruntime import artifact as artifacts
from graphopt.backends.onnxruntime import devices
from graphopt.backends.onnxruntime.audit import artifacts as audits
from graphopt.backends.onnxruntime.audit import files
from graphopt.backends.onnxruntime.simulate import simulate as simulate_integers
from graphopt.evaluation.file_audit import FileAudit, Fixed
from graphopt.ir.graph import Graph
from graphopt.lowering.integers.simulation import Simulation
from graphopt.targets import Target


class OnnxRuntime(Backend):
    """See `graphopt.backends.onnxruntime`. It also audits ONNX files, whoever made them."""

    name = "onnxruntime"
    runs_on_devices = True

    def deploy(self, graph: Graph, target: Target) -> Graph:
        return artifacts.deploy(graph, target)

    def lower(self, graph: Graph, target: Target, *, name: str = "model", tuning: Tuning | None = None) -> Artifact:
        if tuning is not None:
            self.check_tuning(target, tuning)
        return artifacts.lower(graph, target, name=name)

    def load(self, folder: Path, manifest: Manifest) -> Artifact:
        return artifacts.load(folder, manifest)

    def audit(self, artifact: Artifact) -> Audit:
        return audits.audit(artifact)  # type: ignore[arg-type]  # it made the artifact

    def simulate(self, graph: Graph, target: Target, machine: str | None = None) -> Simulation:
        return simulate_integers(graph, target, machine)

    def connect(self, device: str, target: Target) -> Any:
        return devices.connect(device, target)

    def audit_file(self, path: Path, target: Target, shapes: Sequence[Sequence[int]] | None = None) -> FileAudit:
        return files.audit_file(path, target, shapes)

    def fix(self, found: FileAudit, path: Path, calibration: Any, example: Any, measure: bool) -> Fixed:
        return files.fix(found, path, calibration, example, measure)


BACKEND = OnnxRuntime()

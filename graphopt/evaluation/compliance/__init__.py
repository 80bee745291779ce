"""Does a model obey the rules of a target? For any ONNX file with QuantizeLinear and DequantizeLinear, whoever made it, and for
simulated graphs in any number format.

for violation in check("model.onnx", "hexagon"):
    print(violation)

simulated.py rules for graphs in formats that ONNX cannot express
model.py     an ONNX model as layers, operators and the grids of their values
grids.py     does a grid fit a number format?
rules.py     one function per rule
"""

from __future__ import annotations

from pathlib import Path

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.manifest import read_manifest
from graphopt.artifacts.opening import opened
from graphopt.artifacts.staged import StagedArtifact, is_staged
from graphopt.evaluation.compliance.model import Model, Source
from graphopt.evaluation.compliance.rules import RULES
from graphopt.evaluation.compliance.simulated import SIMULATED_RULES
from graphopt.evaluation.compliance.violation import Violation
from graphopt.ir.graph import Graph
from graphopt.targets import Target, find
from graphopt.utils.files import MANIFEST

__all__ = ["RULES", "Violation", "check"]


def check(model: Source | Graph, target: str | Target) -> list[Violation]:
    """What a model has that the hardware of a target cannot compute, or not in integer.

    Args:
        model: an ONNX file, the folder of a deployed model, an artifact, an `onnx.ModelProto`, or a simulated graph.
        target: a name or a `Target`.

    Returns:
        One line per violation: rule, node, what is wrong and what to do. Empty: the model obeys.

    Raises:
        InputError: there is no such file, or it is no ONNX model.
    """
    chosen = find(target)
    if (stages := _stages(model)) is not None:
        return [violation for stage in stages for violation in check(stage, chosen)]
    if (graph := _graph(model)) is not None:
        return [violation for rule in SIMULATED_RULES for violation in rule(graph, chosen)]
    found = Model.read(model)
    return [violation for rule in RULES for violation in rule(found, chosen)]


def _stages(model: Source | Graph) -> list[Artifact] | None:
    """Those of an artifact that has some."""
    if isinstance(model, (str, Path)) and (Path(model) / MANIFEST).is_file():
        manifest = read_manifest(model)
        model = opened(Path(model), manifest) if is_staged(manifest) else model
    return model.stages if isinstance(model, StagedArtifact) else None


def _graph(model: Source | Graph) -> Graph | None:
    """The graph that a model is, or that its artifact runs; None where it is ONNX."""
    if isinstance(model, (str, Path)) and (Path(model) / MANIFEST).is_file():
        manifest = read_manifest(model)
        if manifest.runtime == "packed":
            model = opened(Path(model), manifest)
    if isinstance(model, Artifact):
        return getattr(model, "graph", None)
    return model if isinstance(model, Graph) else None

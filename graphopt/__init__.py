"""A graph-rewriting compiler that shrinks trained PyTorch models onto edge hardware.

result = graphopt.optimize(model.eval(), images[:1], target="arm", calibration=images)
result.report.print()
result.artifact.save("deployed")

model = graphopt.load("deployed")
logits = model(image)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from graphopt.utils import terminal
from graphopt.utils.version import __version__

if TYPE_CHECKING:
    from graphopt import targets
    from graphopt.artifacts.artifact import Artifact
    from graphopt.artifacts.backend import Tuning
    from graphopt.artifacts.staged import StagedArtifact
    from graphopt.cascades.cascade import Cascade
    from graphopt.compiler.optimize import Optimized, load, optimize, simulate
    from graphopt.compiler.options import Measurement, Quantization, Shrinking, Storage, Training
    from graphopt.compiler.search.results import SearchResults
    from graphopt.compiler.search.run import search
    from graphopt.data.preprocessing import Preprocessing
    from graphopt.evaluation.analysis import Analysis
    from graphopt.evaluation.comparison import compare
    from graphopt.evaluation.compliance import Violation, check
    from graphopt.evaluation.file_audit import FileAudit, Fixed, audit
    from graphopt.evaluation.sensitivity import analyze
    from graphopt.frontend.decoders import CachedDecoder, generate
    from graphopt.ir.graph import Graph
    from graphopt.ir.operators import allow_operators
    from graphopt.targets import Target
    from graphopt.training.compression import Compression
    from graphopt.training.trainer import train
    from graphopt.utils.errors import (
        ArtifactError,
        CaptureError,
        ExecutionError,
        GraphoptError,
        InputError,
        NonFiniteError,
        PassError,
    )

__all__ = [
    "Analysis",
    "Artifact",
    "ArtifactError",
    "CachedDecoder",
    "CaptureError",
    "Cascade",
    "Compression",
    "ExecutionError",
    "FileAudit",
    "Fixed",
    "Graph",
    "GraphoptError",
    "InputError",
    "Measurement",
    "NonFiniteError",
    "Optimized",
    "PassError",
    "Preprocessing",
    "Quantization",
    "SearchResults",
    "Shrinking",
    "StagedArtifact",
    "Storage",
    "Target",
    "Training",
    "Tuning",
    "Violation",
    "__version__",
    "allow_operators",
    "analyze",
    "audit",
    "check",
    "compare",
    "generate",
    "load",
    "optimize",
    "search",
    "simulate",
    "targets",
    "train",
]  # fmt: skip

_HOME = {
    **dict.fromkeys(
        (
            "ArtifactError",
            "CaptureError",
            "ExecutionError",
            "GraphoptError",
            "InputError",
            "NonFiniteError",
            "PassError",
        ),
        "graphopt.utils.errors",
    ),
    "Analysis": "graphopt.evaluation.analysis",
    "Artifact": "graphopt.artifacts.artifact",
    "CachedDecoder": "graphopt.frontend.decoders",
    "Cascade": "graphopt.cascades.cascade",
    "Compression": "graphopt.training.compression",
    "Fixed": "graphopt.evaluation.file_audit",
    "FileAudit": "graphopt.evaluation.file_audit",
    "Graph": "graphopt.ir.graph",
    "Measurement": "graphopt.compiler.options",
    "Optimized": "graphopt.compiler.optimize",
    "Preprocessing": "graphopt.data.preprocessing",
    "Quantization": "graphopt.compiler.options",
    "SearchResults": "graphopt.compiler.search.results",
    "Shrinking": "graphopt.compiler.options",
    "StagedArtifact": "graphopt.artifacts.staged",
    "Storage": "graphopt.compiler.options",
    "Target": "graphopt.targets",
    "Training": "graphopt.compiler.options",
    "Tuning": "graphopt.artifacts.backend",
    "Violation": "graphopt.evaluation.compliance",
    "allow_operators": "graphopt.ir.operators",
    "analyze": "graphopt.evaluation.sensitivity",
    "audit": "graphopt.evaluation.file_audit",
    "compare": "graphopt.evaluation.comparison",
    "check": "graphopt.evaluation.compliance",
    "generate": "graphopt.frontend.decoders",
    "load": "graphopt.compiler.optimize",
    "optimize": "graphopt.compiler.optimize",
    "search": "graphopt.compiler.search.run",
    "simulate": "graphopt.compiler.optimize",
    "train": "graphopt.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import on first use: PyTorch takes seconds to load, and `graphopt --help` should not."""
    if name == "targets":
        return importlib.import_module("graphopt.targets")
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _terminal() -> terminal.Terminal:
    from graphopt.cli.terminal import RichTerminal  # imports rich, which takes a while

    return RichTerminal()


terminal.install(_terminal)
logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever uses the library decides what is shown

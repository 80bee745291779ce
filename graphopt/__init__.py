"""A graph-rewriting compiler that shrinks trained PyTorch models onto edge hardware.

result = graphopt.optimize(model.eval(), images[:1], target="arm", calibration=images)
result.report.print()
result.artifact.save("deployed")

model = graphopt.load("deployed")
logits = model(image)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt.version import __version__

if TYPE_CHECKING:
    from graphopt import targets
    from graphopt.analysis import Analysis, analyze
    from graphopt.api import Optimized, load, optimize, simulate
    from graphopt.artifact import Artifact
    from graphopt.auditing import Cured, FileAudit, audit
    from graphopt.compliance import Violation, check
    from graphopt.graph import Graph
    from graphopt.targets import Target

__all__ = [
    "Analysis", "Artifact", "Cured", "FileAudit", "Graph", "Optimized", "Target", "Violation", "__version__", "analyze", "audit",
    "check", "load", "optimize", "simulate", "targets",
]  # fmt: skip

_HOME = {
    "Analysis": "graphopt.analysis",
    "Artifact": "graphopt.artifact",
    "Cured": "graphopt.auditing",
    "FileAudit": "graphopt.auditing",
    "Graph": "graphopt.graph",
    "Optimized": "graphopt.api",
    "Target": "graphopt.targets",
    "Violation": "graphopt.compliance",
    "analyze": "graphopt.analysis",
    "audit": "graphopt.auditing",
    "check": "graphopt.compliance",
    "load": "graphopt.api",
    "optimize": "graphopt.api",
    "simulate": "graphopt.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: PyTorch takes seconds to load, and `graphopt --help` should not."""
    if name == "targets":
        return importlib.import_module("graphopt.targets")
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)

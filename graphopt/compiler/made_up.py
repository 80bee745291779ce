"""What the time of networks is measured on here: targets that run on this machine, and networks with made-up ranges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from graphopt.artifacts.artifact import Artifact
from graphopt.artifacts.registry import backend
from graphopt.compiler.recipes import clean, timed
from graphopt.data.calibration import synthetic
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import LayerFormat
from graphopt.passmanager.runner import run
from graphopt.targets import Target, architecture, find
from graphopt.utils.errors import InputError


def target_here(target: str | Target) -> Target:
    """The target, where this machine can time it.

    Raises:
        InputError: it is of another architecture.
    """
    found = find(target)
    wanted = found.runtime.architecture
    if wanted != architecture():
        raise InputError(
            f"target {found.name!r} is {wanted}, this machine is {architecture()}: "
            "nothing can be timed for it here; use a target of this machine, such as 'host'"
        )
    return found


def remembered(name: str) -> Path:
    """Where times are kept: below `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphopt" / name


def lowered(
    graph: Graph,
    target: Target,
    *,
    integer: bool = True,
    formats: Mapping[str, LayerFormat | None] | None = None,
) -> Artifact:
    """A float graph as it would be deployed, with made-up ranges, which do not matter for time; it is changed."""
    run(timed(target, synthetic(graph), formats) if integer else clean(target), graph, verify=False)
    return backend(target.runtime.name).lower(graph, target)

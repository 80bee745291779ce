"""The runtimes graphopt lowers to: one table, read wherever a backend is chosen.

A backend is a module with `deploy(graph, target)`, the form of a simulated graph that it stores, `lower(graph, target, *, name)`,
`load(folder, manifest)`, `audit(artifact)` and `simulate(graph, target, machine)`. One that runs artifacts on other devices also
has `connect(device, target)`; one that tunes kernels `check_tuning(target, *, tune, tune_database, tuner, device)`, of which
`lower` takes the options as well. It is imported when first needed, so that what it needs may be missing until then.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from graphopt.targets import Target
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Runtime:
    """Attributes:
    module: of the backend.
    requires: the module that must be installed for it. distribution: what that is called by pip.
    extra: of graphopt that installs it; empty where graphopt always does.
    """

    module: str
    requires: str
    distribution: str
    extra: str = ""


RUNTIMES = {
    "onnxruntime": Runtime("graphopt.backends.onnxruntime", "onnxruntime", "onnxruntime"),
    "packed": Runtime("graphopt.backends.packed", "torch", "torch"),
    "tvm": Runtime("graphopt.backends.tvm", "tvm", "apache-tvm", "tvm"),
}


def backend(runtime: str) -> Any:
    """The backend module of a runtime.

    Raises:
        InputError: there is no such runtime, or it is not installed; says how to install it.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"this graphopt has no runtime {runtime!r}; it has {', '.join(RUNTIMES)}")
    entry = RUNTIMES[runtime]
    if not available(runtime):
        wanted = f"graphopt[{entry.extra}]" if entry.extra else entry.distribution
        raise InputError(f"the runtime {runtime!r} is not installed; install it with: pip install '{wanted}'")
    return importlib.import_module(entry.module)


def available(runtime: str) -> bool:
    """Whether what a runtime needs is installed."""
    return importlib.util.find_spec(RUNTIMES[runtime].requires) is not None


def connect(target: Target, device: str) -> Any:
    """A connection to a device, on which artifacts for the target then run with `.on(device)`.

    Raises:
        InputError: nothing answers there, or it does not run what is made for the target.
    """
    module = backend(target.runtime)
    if not hasattr(module, "connect"):
        raise InputError(f"{target.runtime} runs on this machine only; leave out {device}")
    return module.connect(device, target)

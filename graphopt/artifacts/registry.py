"""The runtimes that graphs are lowered to: our own, and those that packages of others add (`graphopt.backends`)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.utils import plugins
from graphopt.utils.errors import InputError

if TYPE_CHECKING:  # which imports torch: what is installed can be said without
    from graphopt.artifacts.backend import Backend

GROUP = "graphopt.backends"  # of entry points


@dataclass(frozen=True)
class Runtime:
    """One of our own backends, imported when it is first needed, so that what it needs may be missing until then.

    Attributes:
        module: which holds it as `BACKEND`.
        requires: the module that must be installed for it. distribution: what that is called by pip.
        extra: of graphopt that installs it; empty where graphopt always does.
    """

    module: str
    requires: str
    distribution: str
    extra: str = ""


RUNTIMES = {
    "executorch": Runtime("graphopt.backends.executorch.backend", "executorch", "executorch", "executorch"),
    "onnxruntime": Runtime("graphopt.backends.onnxruntime.backend", "onnxruntime", "onnxruntime"),
    "packed": Runtime("graphopt.backends.packed.backend", "torch", "torch"),
    "tvm": Runtime("graphopt.backends.tvm.backend", "tvm", "apache-tvm", "tvm"),
}


def names() -> list[str]:
    """The runtimes there are, installed or not."""
    return [*RUNTIMES, *(name for name in plugins.names(GROUP) if name not in RUNTIMES)]


def backend(runtime: str) -> Backend:
    """The backend of a runtime.

    Raises:
        InputError: there is no such runtime, or it is not installed; says how to install it.
    """
    from graphopt.artifacts.backend import Backend

    entry = RUNTIMES.get(runtime)
    if entry is None:
        found: Backend | None = plugins.find(GROUP, runtime, Backend)
        if found is None:
            raise InputError(f"this graphopt has no runtime {runtime!r}; it has {', '.join(names())}")
        return found
    if not available(runtime):
        wanted = f"graphopt[{entry.extra}]" if entry.extra else entry.distribution
        raise InputError(f"the runtime {runtime!r} is not installed; install it with: pip install '{wanted}'")
    own: Backend = importlib.import_module(entry.module).BACKEND
    return own


def available(runtime: str) -> bool:
    """Whether what one of our own runtimes needs is installed."""
    return importlib.util.find_spec(RUNTIMES[runtime].requires) is not None


def version(runtime: str) -> str:
    """Of the package that runs what is lowered for a runtime: a new release may be faster or slower."""
    if (own := RUNTIMES.get(runtime)) is not None:
        return importlib.metadata.version(own.distribution)
    return plugins.version(GROUP, runtime)

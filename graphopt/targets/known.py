"""Targets by name."""

from __future__ import annotations

from graphopt.targets.compiled import COMPILED
from graphopt.targets.cpus import CPUS
from graphopt.targets.executorch import EXECUTORCH
from graphopt.targets.gpus import GPUS
from graphopt.targets.machine import architecture, machine_here
from graphopt.targets.packed import PACKED
from graphopt.targets.target import Target
from graphopt.targets.vendors import VENDORS
from graphopt.utils import plugins
from graphopt.utils.errors import InputError, alternatives

GROUP = "graphopt.targets"  # entry points of packages that add one
KNOWN = CPUS | COMPILED | EXECUTORCH | GPUS | VENDORS | PACKED


def names() -> list[str]:
    """The names `find` knows: our own, and those of installed packages (entry points in `graphopt.targets`)."""
    added = [name for name in plugins.names(GROUP) if name not in KNOWN]
    return [*sorted([*KNOWN, *added]), "host"]


def find(target: str | Target) -> Target:
    """The target of this name; a `Target` is returned as it is.

    Raises:
        InputError: the name is unknown (the message suggests the nearest and lists all), or the target of another package cannot
            be imported.
    """
    if isinstance(target, Target):
        return target
    if target == "host":
        return host()
    if target not in KNOWN:
        added: Target | None = plugins.find(GROUP, target, Target)
        if added is not None:
            return added
        raise InputError(f"unknown target {target!r}; {alternatives(str(target), names(), 'targets')}")
    return KNOWN[target]


def host(runtime: str = "onnxruntime") -> Target:
    """The machine this runs on, through one of the runtimes that `host_runtimes` names.

    Raises:
        InputError: it has no such runtime.
    """
    known = _here()
    if runtime not in known:
        raise InputError(f"the target 'host' runs through {' or '.join(known)}, not through {runtime!r}")
    return KNOWN[known[runtime]].replace(name="host")


def host_runtimes() -> list[str]:
    """The runtimes there are for this machine, whether they are installed or not."""
    return list(_here())


def _here() -> dict[str, str]:
    """Runtime -> target of this machine."""
    found = {"onnxruntime": {"aarch64": "arm", "avx2": "x86-avx2"}.get(machine_here(), "x86")}
    compiled = {"aarch64": "tvm-arm64", "armv7l": "tvm-armv7", "riscv64": "tvm-riscv64", "x86_64": "tvm-x86"}
    if (name := compiled.get(architecture())) is not None:
        found["tvm"] = name
    return found

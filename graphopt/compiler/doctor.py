"""What this machine can do: processor, runtimes, extras, compilers and emulators, what each is for, and how to get the rest.

graphopt doctor
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.artifacts import registry
from graphopt.targets import LINKERS, architecture, cpu_features, find, host_runtimes, machine_here, names
from graphopt.utils.printed import Printed
from graphopt.utils.tables import Block, Column, Line, Table

# What speeds up 8-bit products, by architecture: flag of the kernel -> what it is.
INTEGER = {
    "x86_64": {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx2": "AVX2", "avx512f": "AVX-512"},
    "aarch64": {"asimddp": "dot products", "i8mm": "8-bit matrix products", "asimdhp": "float16", "sve": "SVE"},
}
EXTRAS = {  # distribution -> (extra of graphopt, what for)
    "pillow": ("images", "photos as calibration data"),
    "matplotlib": ("plots", "plots of layers and tensors"),
    "xgboost": ("metaschedule", "--tuner metaschedule"),
    "onnxruntime-qnn": ("qnn", "Qualcomm's HTP, or its emulator"),
    "pyopencl": ("opencl", "running OpenCL source on the CPU"),
}
PROGRAMS = {  # name -> (package of Debian, what for)
    "g++": ("g++", "linking for this machine, through TVM"),
    **{
        compiler: (package, f"linking for {other}, through TVM")
        for other, (compiler, package) in LINKERS.items()
        if other != architecture()
    },
    "qemu-aarch64-static": ("qemu-user-static", "tests on 64-bit ARM without the hardware"),
    "nvcc": ("nvidia-cuda-toolkit", "compiling CUDA source for tvm-cuda"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is there or not.

    Attributes:
        found: version or place; empty where it is missing.
        remedy: what installs it; empty where it is there, or nothing does.
        purpose: what it is for.
    """

    name: str
    found: str
    purpose: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Examination(Printed):
    """See the head of this file.

    Attributes:
        machine: architecture, processor, and what of it speeds up integers.
        runtimes, extras, programs: what is installed, and what is not.
        targets: whether each runs here, or why not, by name.
    """

    machine: dict[str, str]
    runtimes: list[Finding]
    extras: list[Finding]
    programs: list[Finding]
    targets: dict[str, str]

    def blocks(self) -> list[Block]:
        facts = Table([Column("this machine"), Column("")], [list(item) for item in self.machine.items()])
        groups = {"runtime": self.runtimes, "extra": self.extras, "program": self.programs}
        here = [name for name, why in self.targets.items() if not why]
        elsewhere = [[name, why] for name, why in self.targets.items() if why]
        return [
            facts,
            *(_table(title, findings) for title, findings in groups.items()),
            Line(f"targets whose artifacts run here: {', '.join(here)}"),
            Table([Column("other targets"), Column("")], elsewhere),
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Examination:
    """Look at this machine. Nothing is imported, compiled or run."""
    return Examination(
        machine=dict(_machine()),
        runtimes=[_runtime(name) for name in registry.RUNTIMES],
        extras=[_extra(name) for name in EXTRAS],
        programs=[_program(name) for name in PROGRAMS],
        targets={name: _why_not(name) for name in names()},
    )


def _machine() -> Iterator[tuple[str, str]]:
    yield "architecture", f"{architecture()}, {os.cpu_count()} cores"
    yield "Python", platform.python_version()
    known = INTEGER.get(architecture(), {})
    found = dict.fromkeys(word for flag, word in known.items() if flag in cpu_features())
    yield "integers", ", ".join(found) or "nothing that is known to speed them up"
    if machine_here() == "avx2":
        yield "", "without VNNI sums of 8-bit products saturate in ONNX Runtime: take the target 'x86-avx2', or 'host'"


def _runtime(name: str) -> Finding:
    runtime = registry.RUNTIMES[name]
    if name == "packed":
        return Finding(name, "part of graphopt", "formats without a runtime, by simulation")
    purpose = "the target 'host'" if name in host_runtimes() else ""
    if not registry.available(name):
        wanted = f"graphopt[{runtime.extra}]" if runtime.extra else runtime.distribution
        return Finding(name, "", purpose, f"pip install '{wanted}'")
    return Finding(name, registry.version(name), purpose)


def _extra(distribution: str) -> Finding:
    extra, purpose = EXTRAS[distribution]
    for name in (distribution, f"{distribution}-cpu"):
        try:
            return Finding(distribution, importlib.metadata.version(name), purpose)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding(distribution, "", purpose, f"pip install 'graphopt[{extra}]'")


def _program(name: str) -> Finding:
    package, purpose = PROGRAMS[name]
    found = shutil.which(name)
    return Finding(name, found or "", purpose, "" if found else f"apt install {package}")


def _why_not(name: str) -> str:
    """Why artifacts of a target do not run here; empty where they do."""
    runtime = find(name).runtime
    if runtime.vendor_compiler:
        return "its files are for a compiler of the hardware's vendor; answers are simulated here"
    if runtime.name in registry.RUNTIMES and not registry.available(runtime.name):
        return f"needs the runtime {runtime.name}, which is not installed"
    if (code := runtime.code) is not None and code.device != "cpu":
        return f"computes on a GPU by {code.device}, which nothing here looks for; answers are simulated"
    if runtime.architecture != architecture():
        linker, _ = LINKERS.get(runtime.architecture, (None, "")) if code is not None else (None, "")
        missing = f", and needs {linker} to be lowered" if linker is not None and shutil.which(linker) is None else ""
        return f"is for {runtime.architecture}{missing}; answers are simulated here"
    if runtime.machine not in (None, machine_here()):
        return f"runs here, and answers something else than on {runtime.machine}"
    return ""


def _table(title: str, findings: list[Finding]) -> Table:
    rows = [[f.name, f.found or "missing", f.purpose, f.remedy] for f in findings]
    return Table([Column(title), Column("found"), Column("for"), Column("how to get it")], rows)

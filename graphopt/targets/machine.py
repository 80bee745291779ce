"""The machine this runs on."""

from __future__ import annotations

import platform
from pathlib import Path


def architecture() -> str:
    """What this machine is called in `Runtime.architecture`."""
    return platform.machine().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")


def machine_here() -> str:
    """Whose integer kernels run here, as `graphopt.simulate` names them: the architecture's, or `avx2` on x86-64 without VNNI."""
    found = architecture()
    vnni = cpu_features() & {"avx512_vnni", "avx_vnni"}
    return "avx2" if found == "x86_64" and not vnni else found


def cpu_features() -> frozenset[str]:
    """Instruction-set flags of this machine as the kernel names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())

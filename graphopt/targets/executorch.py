"""CPUs through ExecuTorch and XNNPACK: one file for phones, boards and this machine."""

from __future__ import annotations

from graphopt.formats import Format
from graphopt.targets.cpus import SIGNED_WEIGHTS
from graphopt.targets.families import SHARING
from graphopt.targets.kernels import Kernels
from graphopt.targets.machine import architecture
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import Runtime
from graphopt.targets.target import Target

XNNPACK_INTEGER = frozenset({"conv", "linear", "add", "sub", "mul", "concat", "global_average_pool"})

_EXECUTORCH = Target(
    name="executorch",
    description="ARM and x86 CPUs through ExecuTorch and XNNPACK: a .pte with signed 8-bit activations",
    formats=Formats(SIGNED_WEIGHTS, activations=Format(bits=8, signed=True, symmetric=False)),
    runtime=Runtime("executorch", architecture=architecture()),  # a file runs on all of them, and is timed on this one
    kernels=Kernels(
        integer=XNNPACK_INTEGER,
        shares=SHARING | {"concat"},
        float_output=frozenset(),  # integer layers answer in codes
        decompose=frozenset(),  # float kernels of them are faster than several operators
    ),
    source="measured on ExecuTorch 1.5.1; its XNNPACK partitioner",
)
EXECUTORCH = {_EXECUTORCH.name: _EXECUTORCH}

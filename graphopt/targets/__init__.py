"""Targets: what a piece of hardware and its runtime can do, as plain data.

A target decides number formats, where quantizers go and how the graph is lowered. Users may pass a `Target` of their own
(`find("arm").replace(channel_multiple=16, ...)`) wherever a name is accepted.

    target.py           what there is to say about one, in three parts:
    number_formats.py   formats of weights, activations and biases
    kernels.py          which operators compute in integer, and what they require
    runtime.py          what runs the model, and what code is generated for it
    energy.py           picojoules of operations and accesses, by a table
    cpus.py             CPUs through ONNX Runtime
    compiled.py         CPUs through TVM
    executorch.py       CPUs through ExecuTorch
    gpus.py             GPUs through TVM
    vendors.py          GPUs, DSPs and accelerators, fed by an ONNX file for their vendor's compiler
    packed.py           accelerators whose formats ONNX cannot express
    families.py         families of operators by what kernels make of them
    known.py            all of them, by name
    machine.py          the machine this runs on
    explain.py          a target in words
"""

from graphopt.targets.energy import Energy
from graphopt.targets.explain import explain
from graphopt.targets.kernels import Kernels
from graphopt.targets.known import find, host, host_runtimes, names
from graphopt.targets.machine import architecture, cpu_features, machine_here
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import LINKERS, CodeGeneration, Runtime
from graphopt.targets.target import Target

__all__ = [
    "LINKERS",
    "CodeGeneration",
    "Energy",
    "Formats",
    "Kernels",
    "Runtime",
    "Target",
    "architecture",
    "cpu_features",
    "explain",
    "find",
    "host",
    "host_runtimes",
    "machine_here",
    "names",
]

"""ExecuTorch: lower a graph to a `.pte` with integer weights for XNNPACK, run it here, and read back what is in integer.

artifact = lower(graph, target)
artifact(images)
simulate(graph, target) # the artifact's answers in torch, integer by integer
audit(artifact)         # share of the work in integer, operators that stayed float

form.py       the quantized form that XNNPACK takes
operators.py  operators as XNNPACK's partitioner knows them
programs.py   from that form to a program of `torch.export`
compiling.py  from a program to a `.pte`, and what is computed where
reading.py    what of a program is in integer, and what nothing can compute
lowering.py   all of that in order
artifact.py   what comes of it, as an artifact
running.py    programs that are run, and why one fails
runtime.py    ExecuTorch itself, imported when it is needed
simulate.py   the same integers in torch
backend.py    its functions, registered
"""

from graphopt.backends.executorch.artifact import ExecutorchArtifact, audit, load
from graphopt.backends.executorch.lowering import lower
from graphopt.backends.executorch.simulate import simulate

__all__ = ["ExecutorchArtifact", "audit", "load", "lower", "simulate"]

"""TVM: lower a graph to kernels compiled ahead of time for a CPU or GPU, true integers and float16 included.

artifact = lower(graph, target)
artifact(images)
simulate(graph, target) # the artifact's answers in torch, integer by integer
audit(artifact)         # share of the work in integer, operators that stayed float
artifact.on("rpc://host:port")(images)  # on a device
"""

import tvm_ffi

from graphopt.backends.tvm.artifact import TvmArtifact, audit, load
from graphopt.backends.tvm.connection import connect
from graphopt.backends.tvm.float16 import deploy
from graphopt.backends.tvm.lowering import check_tuning, lower
from graphopt.backends.tvm.simulate import simulate

__all__ = ["TvmArtifact", "audit", "check_tuning", "connect", "deploy", "load", "lower", "simulate"]

# Python that TVM calls back may be interrupted: that is no RuntimeError, which handlers of errors would take for TVM's own.
for _interruption in (KeyboardInterrupt, SystemExit):
    tvm_ffi.register_error(_interruption.__name__, _interruption)

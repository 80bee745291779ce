"""A compiled model as plain C and objects, for systems without TVM's runtime, without an operating system and without `malloc`.

artifact.compile("bare")                # or: graphopt compile deployed --out bare
    model.h             int model_run(const float *input0, float *output0, void *workspace);
    model.c             calls the kernels in order, each on its place in the workspace
    model_kernels.o     machine code
    model_weights.o     constants, read-only

Of a staged artifact, `model_run(input0, output0, &stage, workspace)` returns as soon as a stage is sure (`staged_source.py`).
"""

from graphopt.artifacts.memory import OBJECTS
from graphopt.backends.tvm.bare.calls import Calls, recorded
from graphopt.backends.tvm.bare.export import compile_objects, write_objects
from graphopt.backends.tvm.bare.held import HELD, held, hold

__all__ = ["HELD", "OBJECTS", "Calls", "compile_objects", "held", "hold", "recorded", "write_objects"]

"""Kernels as TIR, fast without tuning: from a spec to a function for `call_tir`, and a packer for the arrays it takes.

    kernel = conv(Conv((1, 56, 56, 64), 64, (3, 3), padding=((1, 1), (1, 1))), machine)
    kernel.function                         # (data[, residual], *constants, result)
    kernel.constants(weight, bias)          # arrays in the order the function takes them

    with tvm.transform.PassContext(config=PASS_CONFIG): ...     # compile under it, for speed

Tile sizes follow from the `Machine`: width and number of its vectors, and its caches. For a `Gpu` there are kernels of many
threads, in `gpu`.
"""

from graphopt.backends.tvm.machine import Gpu, Machine, Processor
from graphopt.backends.tvm.schedules import depthwise, direct, pooling
from graphopt.backends.tvm.schedules import elementwise as elements
from graphopt.backends.tvm.schedules.emit import PASS_CONFIG, Kernel
from graphopt.backends.tvm.schedules.epilogue import Codes, Epilogue, Sum
from graphopt.backends.tvm.schedules.exact import written_for
from graphopt.backends.tvm.schedules.gpu import gemm
from graphopt.backends.tvm.schedules.specs import Add, Conv, Dequantize, Elementwise, Lookup, Pool, Quantize
from graphopt.backends.tvm.schedules.tiles import Tile

__all__ = [
    "PASS_CONFIG",
    "Add", "Codes", "Conv", "Dequantize", "Epilogue", "Kernel", "Lookup", "Pool", "Quantize", "Sum", "Tile",
    "conv", "elementwise", "pool", "tiles_of", "written_for",
]  # fmt: skip


def conv(spec: Conv, machine: Processor, tile: Tile | None = None) -> Kernel:
    """A convolution or linear layer with everything behind it. `tile`: one of `tiles_of`; None: the rule's, their first."""
    with written_for(machine):
        if depthwise.applies(spec):
            return depthwise.conv(spec, machine, tile)
        return gemm.conv(spec, machine) if isinstance(machine, Gpu) else direct.conv(spec, machine, tile)


def pool(spec: Pool, machine: Processor) -> Kernel:
    """Maxima or means over windows."""
    with written_for(machine):
        return pooling.pool(spec, machine)


def elementwise(spec: Elementwise, machine: Processor) -> Kernel:
    """One element in, one out."""
    with written_for(machine):
        return elements.elementwise(spec, machine)


def tiles_of(spec: Conv, machine: Machine) -> list[Tile]:
    """The register tiles that a layer may have on a CPU, the best by rule first."""
    return depthwise.candidates(spec, machine) if depthwise.applies(spec) else direct.candidates(spec, machine)

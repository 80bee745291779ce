"""Kernels as TIR, fast without tuning: from a spec to a function for `call_tir`, and a packer for the arrays it takes.

    kernel = conv(Conv((1, 56, 56, 64), 64, (3, 3), padding=((1, 1), (1, 1))), machine)
    kernel.function                         # (data[, residual], *constants, result)
    kernel.constants(weight, bias)          # arrays in the order the function takes them

    with tvm.transform.PassContext(config=PASS_CONFIG): ...     # compile under it, for speed

Tile sizes follow from the `Machine`: width and number of its vectors, and its caches.
"""

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import depthwise, direct
from graphopt.backends.tvm.schedules.elementwise import elementwise
from graphopt.backends.tvm.schedules.emit import PASS_CONFIG, Kernel
from graphopt.backends.tvm.schedules.epilogue import Codes, Epilogue, Sum
from graphopt.backends.tvm.schedules.pooling import pool
from graphopt.backends.tvm.schedules.specs import Add, Conv, Dequantize, Lookup, Pool, Quantize
from graphopt.backends.tvm.schedules.tiles import Tile

__all__ = [
    "PASS_CONFIG",
    "Add", "Codes", "Conv", "Dequantize", "Epilogue", "Kernel", "Lookup", "Pool", "Quantize", "Sum", "Tile",
    "conv", "elementwise", "pool", "tiles_of",
]  # fmt: skip


def conv(spec: Conv, machine: Machine, tile: Tile | None = None) -> Kernel:
    """A convolution or linear layer with everything behind it. `tile`: one of `tiles_of`; None: the rule's, their first."""
    return depthwise.conv(spec, machine, tile) if depthwise.applies(spec) else direct.conv(spec, machine, tile)


def tiles_of(spec: Conv, machine: Machine) -> list[Tile]:
    """The register tiles that a layer may have, the best by rule first."""
    return depthwise.candidates(spec, machine) if depthwise.applies(spec) else direct.candidates(spec, machine)

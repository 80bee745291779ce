"""Kernels as TIR, fast without tuning: from a spec to a function for `call_tir`, and a packer for the arrays it takes.

    kernel = conv(Conv((1, 56, 56, 64), 64, (3, 3), padding=((1, 1), (1, 1))), machine)
    kernel.function                         # (data[, residual], *constants, result)
    kernel.constants(weight, bias)          # arrays in the order the function takes them

    with tvm.transform.PassContext(config=PASS_CONFIG): ...     # compile under it, for speed

Tile sizes follow from the `Machine`: width and number of its vectors, and its caches. For a `Gpu` there are kernels of many
threads, in `gpu`.
"""

from graphopt.backends.tvm.machine import Gpu, Machine, Processor
from graphopt.backends.tvm.schedules import bits, depthwise, direct, few, pairs, pooling, products, sampled
from graphopt.backends.tvm.schedules import elementwise as elements
from graphopt.backends.tvm.schedules import planes as images
from graphopt.backends.tvm.schedules.emit import PASS_CONFIG, Kernel
from graphopt.backends.tvm.schedules.epilogue import Codes, Epilogue, Sum
from graphopt.backends.tvm.schedules.exact import written_for
from graphopt.backends.tvm.schedules.gpu import gemm
from graphopt.backends.tvm.schedules.sampled import Sample
from graphopt.backends.tvm.schedules.specs import (
    Add,
    Conv,
    Dequantize,
    Elementwise,
    Lookup,
    Multiply,
    Planes,
    Pool,
    Quantize,
    Spec,
)
from graphopt.backends.tvm.schedules.tiles import Tile

__all__ = [
    "PASS_CONFIG",
    "Add", "Codes", "Conv", "Dequantize", "Epilogue", "Kernel", "Lookup", "Multiply", "Planes", "Pool", "Quantize", "Sample",
    "Spec", "Sum", "Tile", "Variant",
    "conv", "elementwise", "kernel", "multiply", "planes", "pool", "tiles_of", "written_for",
]  # fmt: skip

Variant = Tile | Sample


def conv(spec: Conv, machine: Processor, variant: Variant | None = None) -> Kernel:
    """A convolution or linear layer with everything behind it.

    `variant`, on a CPU: one of `tiles_of`, or a sample of the layer's schedules; None: the rule's, the first tile.
    """
    with written_for(machine):
        if isinstance(variant, Sample):
            assert not isinstance(machine, Gpu)
            return sampled.conv(spec, machine, variant)
        if bits.applies(spec) and isinstance(machine, Machine):
            return bits.conv(spec, machine, variant)
        if few.applies(spec) and isinstance(machine, Machine):
            return few.conv(spec, machine, variant)
        if depthwise.applies(spec):
            return depthwise.conv(spec, machine, variant)
        if isinstance(machine, Machine) and pairs.applies(spec, machine):
            return pairs.conv(spec, machine)
        return gemm.conv(spec, machine) if isinstance(machine, Gpu) else direct.conv(spec, machine, variant)


def pool(spec: Pool, machine: Processor) -> Kernel:
    """Maxima or means over windows."""
    with written_for(machine):
        return pooling.pool(spec, machine)


def elementwise(spec: Elementwise, machine: Processor) -> Kernel:
    """One element in, one out."""
    with written_for(machine):
        return elements.elementwise(spec, machine)


def multiply(spec: Multiply, machine: Processor) -> Kernel:
    """Products of codes."""
    with written_for(machine):
        return products.multiply(spec, machine)


def planes(spec: Planes, machine: Processor) -> Kernel:
    """Images to codes with channels innermost."""
    with written_for(machine):
        return images.planes(spec, machine)


def kernel(spec: Spec, machine: Processor, variant: Variant | None = None) -> Kernel:
    """Any of them; `variant` as for `conv`."""
    if isinstance(spec, Conv):
        return conv(spec, machine, variant)
    if isinstance(spec, Multiply):
        return multiply(spec, machine)
    if isinstance(spec, Planes):
        return planes(spec, machine)
    return pool(spec, machine) if isinstance(spec, Pool) else elementwise(spec, machine)


def tiles_of(spec: Conv, machine: Machine) -> list[Tile]:
    """The register tiles that a layer may have on a CPU, the best by rule first."""
    if bits.applies(spec):
        return bits.candidates(spec, machine)
    return depthwise.candidates(spec, machine) if depthwise.applies(spec) else direct.candidates(spec, machine)

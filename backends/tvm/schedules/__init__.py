"""Kernels as TIR: from a spec to a function for `call_tir`, and a packer for the arrays it takes.

kernel = conv(Conv((1, 56, 56, 64), 64, (3, 3), padding=((1, 1), (1, 1))), machine)
kernel.function                         # (data[, residual], *constants, result)
kernel.constants(weight, bias)          # arrays in the order the function takes them
"""

from graphopt.backends.tvm.schedules.naive import Kernel, conv, elementwise, pool
from graphopt.backends.tvm.schedules.specs import Add, Codes, Conv, Dequantize, Epilogue, Lookup, Pool, Quantize, Sum

__all__ = [
    "Add", "Codes", "Conv", "Dequantize", "Epilogue", "Kernel", "Lookup", "Pool", "Quantize", "Sum", "conv", "elementwise", "pool",
]  # fmt: skip

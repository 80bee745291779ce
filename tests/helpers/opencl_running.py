"""Run OpenCL source that TVM generates without TVM's runtime: kernel by kernel, on any OpenCL device (here PoCL, on the CPU).

    run = OpenCL(graph, target)
    run(images)                        # what a GPU would answer, all kernels of a graph in turn
    run_kernel(kernel, *arrays)        # one kernel

The Relax program is walked call by call; a kernel's launch sizes are those its function of TIR is bound to. Where the device has
no 16-bit floats, `half` becomes a type that is only stored: kernels compute in float32 and convert what they load and store. What
CUDA calls `__dp4a` is a function here.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pyopencl as cl
import torch
import tvm
from torch import Tensor
from tvm import relax

from graphopt.backends.tvm.build import Code, build, device_source, kernels_of
from graphopt.backends.tvm.lowering import compiled
from graphopt.backends.tvm.schedules import PASS_CONFIG, Kernel
from graphopt.ir.graph import Graph
from graphopt.targets import Target

DP4A = """
int __dp4a(int a, int b, int c) {
  char4 x = as_char4(a), y = as_char4(b);
  return c + x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
}
"""
STORED_HALF = """
typedef struct { ushort bits; } stored_half;
#define OVER __attribute__((overloadable))
float OVER to_float(stored_half x) { return vload_half(0, (const __private half *)&x); }
float OVER to_float(int x) { return (float)x; }
float OVER to_float(uint x) { return (float)x; }
float OVER to_float(char x) { return (float)x; }
float OVER to_float(uchar x) { return (float)x; }
float OVER to_float(float x) { return x; }
stored_half OVER to_half(float x) { stored_half y; vstore_half_rte(x, 0, (__private half *)&y); return y; }
#define half stored_half
#undef convert_float
#define convert_float to_float
#define convert_half to_half
"""


@cache
def queue() -> Any:
    """Of the first OpenCL device; raises `cl.Error` where there is none."""
    device = cl.get_platforms()[0].get_devices()[0]
    return cl.CommandQueue(cl.Context([device]))


class Program:
    """Compiled source."""

    def __init__(self, source: str) -> None:
        self.source = source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)
            program = cl.Program(queue().context, _portable(source)).build()
        self.kernels = {kernel.function_name: kernel for kernel in program.all_kernels()}

    def launch(self, function: Any, name: str, arrays: list[Any]) -> None:
        """Run the kernel of a function of TIR; the last array is its result."""
        kernel = self.kernels[f"{name}_kernel"]
        blocks, threads = launch_sizes(function)
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        names = [f"{parameter.name}_ptr" for parameter in function.params]
        contiguous = [np.ascontiguousarray(array) for array in arrays]
        buffers = {n: cl.Buffer(queue().context, flags, hostbuf=a) for n, a in zip(names, contiguous, strict=True)}
        found = re.search(rf"void {name}_kernel\(([^)]*)\)", self.source)
        assert found is not None
        kernel.set_args(*(buffers[parameter] for parameter in re.findall(r"(\w+)(?:,|$)", found.group(1))))
        cl.enqueue_nd_range_kernel(queue(), kernel, [b * t for b, t in zip(blocks, threads, strict=True)], threads)
        cl.enqueue_copy(queue(), arrays[-1], buffers[names[-1]])
        queue().finish()


class OpenCL:
    """A graph lowered for a target of OpenCL, with a fixed batch."""

    def __init__(self, graph: Graph, target: Target) -> None:
        code = Code.of(target.runtime)
        self.module = kernels_of(compiled(graph, code).module, code)
        self.program = Program(device_source(build(self.module, code)))

    def __call__(self, *inputs: Tensor) -> Any:
        main = self.module["main"]
        values: dict[Any, Any] = {p: x.numpy() for p, x in zip(main.params, inputs, strict=True)}
        for block in main.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._evaluate(binding.value, values)
        arrays = [torch.from_numpy(a) for a in self._evaluate(main.body.body, values)]
        return arrays[0] if len(arrays) == 1 else arrays

    def _evaluate(self, expr: Any, values: dict[Any, Any]) -> Any:
        if expr in values:
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return [self._evaluate(field, values) for field in expr.fields]
        if hasattr(expr, "value"):  # a constant
            return expr.value.numpy()
        shape = [int(size) for size in expr.ty.shape]
        if expr.op.name == "relax.reshape":
            return self._evaluate(expr.args[0], values).reshape(shape)
        assert expr.op.name == "relax.call_tir", expr.op
        arrays = [self._evaluate(a, values) for a in expr.args[1].fields]
        result = np.empty(shape, str(expr.ty.dtype))
        name = expr.args[0].name_hint
        self.program.launch(self.module[name], name, [*arrays, result])
        return result


def run_kernel(kernel: Kernel, *arrays: Any) -> Any:
    with tvm.transform.PassContext(config=PASS_CONFIG):
        executable = tvm.compile(kernel.function, tvm.target.Target({"kind": "opencl"}, host={"kind": "llvm"}))
    result = np.full(kernel.shape, 99, kernel.dtype)
    Program(device_source(executable)).launch(kernel.function, "main", [*arrays, result])
    return result


def launch_sizes(function: Any) -> tuple[list[int], list[int]]:
    """Blocks and threads of a block along x, y, z."""
    text = function.script()
    sizes: dict[str, int] = {}
    for axis, extent in re.findall(r'launch_thread\("(\w+\.\w)", (\d+)\)', text):
        assert sizes.setdefault(axis, int(extent)) == int(extent), "two kernels in one function"
    for extent, axis in re.findall(r'thread_binding\((?:T\.int64\()?(\d+)\)?, thread="(\w+\.\w)"\)', text):
        assert sizes.setdefault(axis, int(extent)) == int(extent), "two kernels in one function"
    blocks, threads = ([sizes.get(f"{kind}Idx.{axis}", 1) for axis in "xyz"] for kind in ("block", "thread"))
    assert sizes
    assert prod(threads) <= 256
    return blocks, threads


def _portable(source: str) -> str:
    if "cl_khr_fp16" in queue().device.extensions or "half" not in source:
        return DP4A + source
    checks = re.compile(r"#ifdef cl_khr_fp16.*?#endif\n", re.DOTALL)
    constants = re.compile(r"\(half\)(-?[\d.]+e[+-]\d+f)")
    return STORED_HALF + constants.sub(r"convert_half(\1)", checks.sub("", source))

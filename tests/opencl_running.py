"""Run the OpenCL source of an artifact without TVM's runtime: kernel by kernel, on any OpenCL device (here PoCL, on the CPU).

    run = OpenCL(graph, target)
    run(images)            # what a GPU would answer
    run.seen["conv3"]      # every result of a kernel, by the name of its function

The Relax program is walked call by call; a kernel's launch sizes are those its function of TIR is bound to. Where the device has
no 16-bit floats, `half` becomes a type that is only stored: kernels compute in float32 and convert what they load and store.
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
from torch import Tensor
from tvm import relax

from graphopt.backends.tvm.artifact import compiled
from graphopt.backends.tvm.build import Code, as_kernels, build, device_source
from graphopt.backends.tvm.machine import processor
from graphopt.backends.tvm.schedules import written_for
from graphopt.graph import Graph
from graphopt.targets import Target

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
#define convert_float to_float
#define convert_half to_half
"""


@cache
def queue() -> Any:
    """Of the first OpenCL device; raises `cl.Error` where there is none."""
    device = cl.get_platforms()[0].get_devices()[0]
    return cl.CommandQueue(cl.Context([device]))


class OpenCL:
    """A graph lowered for a target of OpenCL."""

    def __init__(self, graph: Graph, target: Target) -> None:
        code = Code.of(target)
        module = compiled(graph, code).module
        chosen = processor(code.target())
        with code.target(), written_for(chosen):
            self.module = as_kernels(chosen)(module)
        self.source = device_source(build(module, code))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)
            self.program = cl.Program(queue().context, _portable(self.source)).build()
        self.kernels = {kernel.function_name: kernel for kernel in self.program.all_kernels()}
        self.seen: dict[str, np.ndarray[Any, Any]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        main = self.module["main"]
        values: dict[Any, Any] = {p: x.numpy() for p, x in zip(main.params, inputs, strict=True)}
        for block in main.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._evaluate(binding.value, values)
        return _torch(self._evaluate(main.body.body, values))

    def _evaluate(self, expr: Any, values: dict[Any, Any]) -> Any:
        if expr in values:
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return [self._evaluate(field, values) for field in expr.fields]
        if hasattr(expr, "value"):  # a constant
            return expr.value.numpy()
        operator = expr.op.name if hasattr(expr.op, "name") else ""
        if operator == "relax.reshape":
            return self._evaluate(expr.args[0], values).reshape([int(s) for s in expr.ty.shape])
        assert operator == "relax.call_tir", operator
        arrays = [self._evaluate(a, values) for a in expr.args[1].fields]
        result = np.empty([int(s) for s in expr.ty.shape], str(expr.ty.dtype))
        self.launch(expr.args[0].name_hint, [*arrays, result])
        self.seen[expr.args[0].name_hint] = result
        return result

    def launch(self, name: str, arrays: list[Any]) -> None:
        """The last array is the result."""
        function, kernel = self.module[name], self.kernels[f"{name}_kernel"]
        blocks, threads = launch_sizes(function)
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        names = [re.sub(r"\W", "_", p.name) for p in function.params]
        buffers = {
            f"{n}_ptr": cl.Buffer(queue().context, flags, hostbuf=np.ascontiguousarray(a))
            for n, a in zip(names, arrays, strict=True)
        }
        kernel.set_args(*(buffers[name] for name in self._parameters(name)))
        cl.enqueue_nd_range_kernel(queue(), kernel, [b * t for b, t in zip(blocks, threads, strict=True)], threads)
        cl.enqueue_copy(queue(), arrays[-1], buffers[f"{names[-1]}_ptr"])
        queue().finish()

    def _parameters(self, name: str) -> list[str]:
        found = re.search(rf"void {name}_kernel\(([^)]*)\)", self.source)
        assert found is not None
        return re.findall(r"(\w+)(?:,|$)", found.group(1))


def launch_sizes(function: Any) -> tuple[list[int], list[int]]:
    """Blocks and threads of a block along x, y, z."""
    text = function.script()
    sizes = {}
    for pattern in (
        r'launch_thread\("(\w+\.\w)", (\d+)\)',
        r'thread_binding\(()(?:T\.int64\()?(\d+)\)?, thread="(\w+\.\w)"\)',
    ):
        for found in re.findall(pattern, text):
            axis, extent = (found[0], found[1]) if found[0] else (found[2], found[1])
            assert sizes.setdefault(axis, int(extent)) == int(extent), "two kernels in one function"
    blocks, threads = ([sizes.get(f"{kind}Idx.{axis}", 1) for axis in "xyz"] for kind in ("block", "thread"))
    assert sizes
    assert prod(threads) <= 256
    return blocks, threads


def _portable(source: str) -> str:
    if "cl_khr_fp16" in queue().device.extensions:
        return source
    checks = re.compile(r"#ifdef cl_khr_fp16.*?#endif\n", re.DOTALL)
    return STORED_HALF + checks.sub("", source)


def _torch(value: Any) -> Any:
    arrays = [torch.from_numpy(a) for a in value]
    return arrays[0] if len(arrays) == 1 else arrays

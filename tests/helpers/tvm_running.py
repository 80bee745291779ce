"""Running one TVM kernel, and one ONNX Runtime kernel beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import tvm
from onnx import TensorProto, helper, numpy_helper

from graphopt.backends.tvm import schedules as S
from graphopt.backends.tvm.machine import host, machine
from graphopt.backends.tvm.schedules import Kernel

Array = Any
HOST = machine(host())
SAME = ((1, 1), (1, 1))  # padding that keeps the size under 3x3


def compiled(kernel: Kernel, target: Any = None) -> Any:
    with tvm.transform.PassContext(config=S.PASS_CONFIG):
        return tvm.compile(kernel.function, target or host())


def run(kernel: Kernel, *arguments: Array) -> Array:
    result = tvm.runtime.tensor(np.full(kernel.shape, 99, kernel.dtype))
    compiled(kernel)["main"](*map(tvm.runtime.tensor, arguments), result)
    return result.numpy()


def run_each(calls: Sequence[tuple[Kernel, Sequence[Array]]]) -> list[Array]:
    """What each kernel answers to its arguments, all compiled at once."""
    functions = {f"f{i}": kernel.function.with_attr("global_symbol", f"f{i}") for i, (kernel, _) in enumerate(calls)}
    with tvm.transform.PassContext(config=S.PASS_CONFIG):
        built = tvm.compile(tvm.IRModule(functions), host())
    results = []
    for name, (kernel, arguments) in zip(functions, calls, strict=True):
        result = tvm.runtime.tensor(np.full(kernel.shape, 99, kernel.dtype))
        built[name](*map(tvm.runtime.tensor, arguments), result)
        results.append(result.numpy())
    return results


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def onnx_sum(
    a: Array, b: Array, first: tuple[float, int], second: tuple[float, int], scale: float, zero_point: int
) -> Array:
    constants = [
        np.float32(first[0]),
        np.uint8(first[1]),
        np.float32(second[0]),
        np.uint8(second[1]),
        np.float32(scale),
    ]
    return onnx("QLinearAdd", [a, *constants[:2], b, *constants[2:], np.uint8(zero_point)], "com.microsoft")


def onnx(operator: str, inputs: list[Array], domain: str = "", **attributes: Any) -> Array:
    """What ONNX Runtime's CPU kernel answers."""
    names = [f"input{i}" for i in range(len(inputs))]
    arrays = [np.asarray(value) for value in inputs]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    kinds = [helper.np_dtype_to_tensor_dtype(a.dtype) for a in arrays]
    output = TensorProto.FLOAT if operator == "DequantizeLinear" else helper.np_dtype_to_tensor_dtype(arrays[-1].dtype)
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info(names[0], kinds[0], arrays[0].shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(a, name) for a, name in zip(arrays[1:], names[1:], strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {names[0]: arrays[0]})[0]

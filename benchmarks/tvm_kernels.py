"""TVM kernels layer by layer against ONNX Runtime: milliseconds, one image, one thread unless `--threads` says.

The layers are those of ResNet-18 and MobileNetV2 at 224 pixels, bias and relu included. ONNX Runtime runs models of a single
layer: float in NCHW, whose time includes the conversion to and from its blocked layout, and integers u8 x s8 in NHWC, as ours.
Figures are the tenth percentile of interleaved rounds: on a shared machine, calls of more than a few milliseconds seldom
pass without another process in between. Every kernel's answer is compared with ONNX Runtime's before it is timed. Needs
`graphopt[tvm]`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime as ort
import tvm
from onnx import TensorProto, helper, numpy_helper

from graphopt.backends.tvm.machine import host, machine
from graphopt.backends.tvm.schedules import PASS_CONFIG, Codes, Conv, Epilogue, conv
from graphopt.ir import cost

Array = Any
QUANTILE = 0.1

# pixels, channels, result channels, kernel, stride, groups
RESNET18 = {
    "stem 7x7/2, 3 -> 64 at 224": (224, 3, 64, 7, 2, 1),
    "3x3, 64 at 56": (56, 64, 64, 3, 1, 1),
    "3x3/2, 64 -> 128 at 56": (56, 64, 128, 3, 2, 1),
    "1x1/2, 64 -> 128 at 56": (56, 64, 128, 1, 2, 1),
    "3x3, 128 at 28": (28, 128, 128, 3, 1, 1),
    "3x3/2, 128 -> 256 at 28": (28, 128, 256, 3, 2, 1),
    "3x3, 256 at 14": (14, 256, 256, 3, 1, 1),
    "3x3/2, 256 -> 512 at 14": (14, 256, 512, 3, 2, 1),
    "3x3, 512 at 7": (7, 512, 512, 3, 1, 1),
    "linear 512 -> 1000": (1, 512, 1000, 1, 1, 1),
}
MOBILENETV2 = {
    "stem 3x3/2, 3 -> 32 at 224": (224, 3, 32, 3, 2, 1),
    "depthwise 3x3, 32 at 112": (112, 32, 32, 3, 1, 32),
    "1x1, 32 -> 16 at 112": (112, 32, 16, 1, 1, 1),
    "1x1, 16 -> 96 at 112": (112, 16, 96, 1, 1, 1),
    "depthwise 3x3/2, 96 at 112": (112, 96, 96, 3, 2, 96),
    "1x1, 24 -> 144 at 56": (56, 24, 144, 1, 1, 1),
    "depthwise 3x3, 144 at 56": (56, 144, 144, 3, 1, 144),
    "1x1, 144 -> 24 at 56": (56, 144, 24, 1, 1, 1),
    "1x1, 192 -> 32 at 28": (28, 192, 32, 1, 1, 1),
    "depthwise 3x3, 384 at 14": (14, 384, 384, 3, 1, 384),
    "1x1, 64 -> 384 at 14": (14, 64, 384, 1, 1, 1),
    "1x1, 576 -> 96 at 14": (14, 576, 96, 1, 1, 1),
    "depthwise 3x3, 960 at 7": (7, 960, 960, 3, 1, 960),
    "1x1, 960 -> 320 at 7": (7, 960, 320, 1, 1, 1),
    "1x1, 320 -> 1280 at 7": (7, 320, 1280, 1, 1, 1),
}


def main() -> None:
    options = common.arguments(__doc__, threads=1, repeats=40, only="")
    os.environ["TVM_NUM_THREADS"] = str(options.threads)  # read when the first kernel runs
    tables = {}
    for title, layers in (("ResNet-18", RESNET18), ("MobileNetV2", MOBILENETV2)):
        rows = [
            row(name, layer, options)
            for name, layer in layers.items()
            if options.only in name and common.log(name) is None
        ]
        if rows:
            tables[f"{title}, milliseconds, {options.threads} thread(s)"] = rows
    common.finish(tables, options.json)


def row(name: str, layer: tuple[int, ...], options: Any) -> dict[str, Any]:
    pixels, channels, out, size, stride, groups = layer
    edge = (size // 2, size // 2)
    rng = np.random.default_rng(0)
    shape: dict[str, Any] = {
        "channels": out, "kernel": (size, size), "stride": (stride, stride), "padding": (edge, edge), "groups": groups,
    }  # fmt: skip
    real = Conv((1, pixels, pixels, channels), **shape, epilogue=Epilogue(clamp=(0.0, None)))
    codes = Conv(real.shape, **shape, data="uint8", zero_point=7, epilogue=Epilogue(result=Codes("uint8", 3)))
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (real.shape, real.weight_shape, (out,)))
    qx = rng.integers(0, 256, real.shape, dtype=np.uint8)
    qw = rng.integers(-127, 128, real.weight_shape, dtype=np.int8)
    qb = rng.integers(-1000, 1000, out, dtype=np.int32)
    scales = (rng.uniform(0.5, 1.5, out) * 0.01 / np.sqrt(np.prod(real.weight_shape[1:]))).astype(np.float32)
    start = time.perf_counter()
    compiled = {"float": ours(real, x, w, b), "int8": ours(codes, qx, qw, qb, scales)}
    seconds = time.perf_counter() - start
    calls = {
        "float": compiled["float"],
        "float, ORT": reference(
            float_model(real, w, b), np.ascontiguousarray(x.transpose(0, 3, 1, 2)), options.threads
        ),
        "int8": compiled["int8"],
        "int8, ORT": reference(integer_model(codes, qw, qb, scales), qx, options.threads),
    }
    expected = calls["float, ORT"]().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(calls["float"]().numpy(), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(calls["int8"]().numpy(), calls["int8, ORT"]().numpy())
    taken = cost.timings(calls, options.repeats).ms
    ms = {call: float(np.quantile(times, QUANTILE)) for call, times in taken.items()}
    return {
        "layer": name,
        **ms,
        "float, of ORT's speed": ms["float, ORT"] / ms["float"],
        "int8, of ORT's speed": ms["int8, ORT"] / ms["int8"],
        "int8 over float": ms["float"] / ms["int8"],
        "GMAC/s float": real.macs / ms["float"] / 1e6,
        "GMAC/s int8": real.macs / ms["int8"] / 1e6,
        "seconds to compile both": seconds,
    }


def ours(spec: Conv, x: Array, *constants: Array) -> Any:
    target = host()
    kernel = conv(spec, machine(target))
    with tvm.transform.PassContext(config=PASS_CONFIG):
        call = tvm.compile(kernel.function, target)["main"]
    result = tvm.runtime.tensor(np.zeros(kernel.shape, kernel.dtype))
    arguments = [tvm.runtime.tensor(a) for a in (x, *kernel.constants(*constants))]

    def run() -> Any:
        call(*arguments, result)
        return result

    return run


def reference(model: onnx.ModelProto, x: Array, threads: int) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y")
    return lambda: (session.run_with_iobinding(binding), binding.get_outputs()[0])[1]


def float_model(spec: Conv, weight: Array, bias: Array) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["sums"], **attributes(spec)),
        helper.make_node("Relu", ["sums"], ["y"]),
    ]
    return model(nodes, TensorProto.FLOAT, {"w": weight, "b": bias})


def integer_model(spec: Conv, weight: Array, bias: Array, multiplier: Array) -> onnx.ModelProto:
    result = spec.epilogue.result
    assert result is not None
    scale = np.float32(1.0)
    constants = {
        "x_scale": scale, "x_zero": np.uint8(spec.zero_point), "w": weight, "w_scale": multiplier,
        "w_zero": np.zeros(spec.channels, np.int8), "y_scale": scale, "y_zero": np.uint8(result.zero_point), "b": bias,
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", *constants], ["y"], domain="com.microsoft", channels_last=1, **attributes(spec)
    )
    return model([node], TensorProto.UINT8, constants)


def model(nodes: list[onnx.NodeProto], dtype: int, constants: dict[str, Array]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", dtype, [None] * 4)],
        [helper.make_tensor_value_info("y", dtype, [None] * 4)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def attributes(spec: Conv) -> dict[str, Any]:
    (top, bottom), (left, right) = spec.padding
    return {
        "kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
        "pads": [top, left, bottom, right],
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""The TVM backend's kernels against torch in float64 and int64, and against ONNX Runtime where rounding matters."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

tvm = pytest.importorskip("tvm", reason="needs graphopt[tvm]")

from graphopt.backends.tvm import schedules as S
from graphopt.backends.tvm.machine import PROFILES, Machine, host, machine
from graphopt.backends.tvm.schedules import (
    Codes,
    Conv,
    Epilogue,
    Kernel,
    Pool,
    Sum,
    conv,
    direct,
    elementwise,
    pool,
    tiles,
)

Array = Any
HOST = machine(host())
# Every way of summing that this machine can execute, with narrow vectors and few registers too.
MACHINES = {
    "host": HOST,
    "widening": Machine(16, 16),
    "scalar": Machine(4, 32),
    "by element": Machine(16, 32, by_element=True),
    **({"madd": Machine(16, 16, dot="madd")} if platform.machine() == "x86_64" else {}),
    **({"madd256": Machine(32, 16, dot="madd")} if platform.machine() == "x86_64" and HOST.vector_bytes >= 32 else {}),
    **(
        {"madd512": replace(HOST, dot="madd"), "vnni256": replace(HOST, vector_bytes=32)}
        if HOST.vector_bytes == 64
        else {}
    ),
}
SAME = ((1, 1), (1, 1))
LAYERS = {
    "3x3": Conv((1, 9, 9, 16), 32, (3, 3), padding=SAME),
    "3x3, stride 2, batch 3": Conv((3, 8, 8, 12), 20, (3, 3), (2, 2), SAME),
    "7x7 stem, 3 channels": Conv((1, 24, 24, 3), 64, (7, 7), (2, 2), ((3, 3), (3, 3))),
    "odd channels": Conv((2, 5, 7, 5), 37, (3, 3), padding=SAME),
    "one channel": Conv((1, 6, 6, 1), 1, (3, 3), padding=SAME),
    "5x3, uneven padding, dilation": Conv((1, 12, 11, 6), 10, (5, 3), (1, 2), ((2, 0), (1, 3)), (2, 3)),
    "groups": Conv((2, 7, 7, 24), 36, (3, 3), padding=SAME, groups=3),
    "groups of one in, two out": Conv((1, 7, 7, 6), 12, (3, 3), padding=SAME, groups=6),
    "depthwise": Conv((2, 9, 9, 40), 40, (3, 3), padding=SAME, groups=40),
    "depthwise, stride 2, 5x5": Conv((1, 11, 11, 17), 17, (5, 5), (2, 2), ((2, 2), (2, 2)), groups=17),
    "depthwise, dilation": Conv((1, 11, 11, 32), 32, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), groups=32),
    "depthwise, 7x7, few channels": Conv((1, 9, 9, 3), 3, (7, 7), padding=((3, 3), (3, 3)), groups=3),
    "1x1, batch 2": Conv((2, 7, 7, 24), 40),
    "1x1, stride 2": Conv((1, 8, 8, 16), 32, stride=(2, 2)),
    "1x1, padded": Conv((1, 3, 3, 8), 16, padding=SAME),
    "linear, 10 classes, batch 5": Conv((1, 1, 5, 30), 10),
    "image in one window": Conv((2, 4, 4, 6), 9, (4, 4)),
    "stride beyond the kernel": Conv((1, 9, 9, 16), 16, (2, 2), (3, 3)),
}


def compiled(kernel: Kernel, target: Any = None) -> Any:
    with tvm.transform.PassContext(config=S.PASS_CONFIG):
        return tvm.compile(kernel.function, target or host())


def run(kernel: Kernel, *arguments: Array) -> Array:
    result = tvm.runtime.tensor(np.full(kernel.shape, 99, kernel.dtype))
    compiled(kernel)["main"](*map(tvm.runtime.tensor, arguments), result)
    return result.numpy()


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def sums(spec: Conv, x: Array, weight: Array, bias: Array) -> torch.Tensor:
    """In float64, in which sums of products of codes are exact; NHWC."""
    (top, bottom), (left, right) = spec.padding
    values = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2) - spec.zero_point
    padded = F.pad(values, (left, right, top, bottom))
    w, b = torch.from_numpy(weight.astype(np.float64)), torch.from_numpy(bias.astype(np.float64))
    return F.conv2d(padded, w, b, spec.stride, 0, spec.dilation, spec.groups).permute(0, 2, 3, 1)


def parameters(spec: Conv) -> tuple[Array, Array, Array]:
    """Weight, bias, and a multiplier that uses the codes well."""
    weight = random(spec.weight_shape, "int8" if spec.integer else spec.data, 1)
    if not spec.integer:
        return weight, random((spec.channels,), "float32", 2), np.ones(1, np.float32)
    bias = np.random.default_rng(2).integers(-5000, 5000, spec.channels, dtype=np.int32)
    spread = 74 * 74 * np.sqrt(np.prod(spec.weight_shape[1:]))
    return (
        weight,
        bias,
        np.random.default_rng(3).uniform(0.5, 1.5, spec.channels).astype(np.float32) * np.float32(60 / spread),
    )


def requantized(acc: torch.Tensor, multiplier: Array, codes: Codes) -> Array:
    steps = torch.round(acc.float() * torch.from_numpy(multiplier))
    return (steps + codes.zero_point).clamp(*codes.ends).numpy().astype(codes.dtype)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("data", ["float32", "uint8", "int8"])
def test_a_layer_is_what_torch_computes(layer: str, data: str) -> None:
    check_layer(replace(LAYERS[layer], data=data), HOST)


@pytest.mark.parametrize("name", [name for name in MACHINES if name != "host"])
@pytest.mark.parametrize("layer", ["odd channels", "groups", "depthwise"])
def test_every_way_of_summing_is_exact(name: str, layer: str) -> None:
    check_layer(replace(LAYERS[layer], data="uint8"), MACHINES[name])


@pytest.mark.parametrize("name", ["scalar", "by element"])
@pytest.mark.parametrize("layer", ["3x3, stride 2, batch 3", "depthwise"])
def test_narrow_vectors_sum_floats(name: str, layer: str) -> None:
    check_layer(LAYERS[layer], MACHINES[name])


def check_layer(spec: Conv, on: Machine) -> None:
    if spec.integer:
        spec = replace(spec, zero_point=5, epilogue=Epilogue(result=Codes(spec.data, 9)))
    weight, bias, multiplier = parameters(spec)
    x = random(spec.shape, spec.data)
    kernel = conv(spec, on)
    result, expected = (
        run(kernel, x, *kernel.constants(weight, bias, multiplier if spec.integer else None)),
        sums(spec, x, weight, bias),
    )
    if spec.integer:
        codes = spec.epilogue.result
        assert codes is not None
        assert len(np.unique(result)) > min(20, result.size // 4), "codes that all saturate would hide mistakes"
        np.testing.assert_array_equal(result, requantized(expected, multiplier, codes))
    else:
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_layers_of_any_shape_are_exact(data: st.DataObject) -> None:
    def few(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
    depthwise = data.draw(st.booleans())
    channels = groups * few(1, 20)
    kernel, stride = (few(1, 4), few(1, 4)), (few(1, 3), few(1, 3))
    dilation = (few(1, 2), few(1, 2))
    shape = (few(1, 2), few(8, 13), few(8, 13), channels)
    out, groups = (channels, channels) if depthwise else (groups * few(1, 30), groups)
    padding = ((few(0, 2), few(0, 2)), (few(0, 2), few(0, 2)))
    spec = Conv(
        shape, out, kernel, stride, padding, dilation, groups, data.draw(st.sampled_from(["uint8", "int8", "float32"]))
    )
    check_layer(spec, MACHINES[data.draw(st.sampled_from(sorted(MACHINES)))])


def test_float16_data_is_summed_in_float32() -> None:
    spec = Conv((1, 6, 6, 64), 24, (3, 3), padding=SAME, data="float16")
    weight, bias, _ = parameters(spec)
    x = random(spec.shape, "float16")
    kernel = conv(spec, HOST)
    expected = sums(spec, x, weight, bias).numpy()
    np.testing.assert_allclose(run(kernel, x, *kernel.constants(weight, bias)), expected, rtol=2**-10, atol=2**-10)


@pytest.mark.parametrize("groups", [1, 24])
def test_a_float_layer_adds_a_residual_and_clamps(groups: int) -> None:
    spec = Conv(
        (2, 5, 5, 24),
        24,
        (3, 3),
        padding=SAME,
        groups=groups,
        epilogue=Epilogue(False, None, "float32", clamp=(0.0, 6.0)),
    )
    weight, _, _ = parameters(spec)
    x, residual = random(spec.shape, "float32"), random(spec.result_shape, "float32", 7)
    kernel = conv(spec, HOST)
    expected = (sums(spec, x, weight, np.zeros(24)) + torch.from_numpy(residual)).clamp(0, 6).numpy()
    np.testing.assert_allclose(run(kernel, x, residual, *kernel.constants(weight)), expected, rtol=1e-5, atol=1e-5)


def test_an_integer_layer_can_answer_in_float() -> None:
    spec = Conv((1, 1, 3, 64), 10, data="uint8", zero_point=128)
    weight, bias, multiplier = parameters(spec)
    x = random(spec.shape, "uint8")
    kernel = conv(spec, HOST)
    expected = sums(spec, x, weight, bias).float().numpy() * multiplier
    np.testing.assert_array_equal(run(kernel, x, *kernel.constants(weight, bias, multiplier)), expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime adds in fixed point elsewhere")
@pytest.mark.parametrize("groups", [1, 20])
def test_an_integer_layer_adds_codes_as_onnxruntime_does(groups: int) -> None:
    own, other, scale = (0.021, 13), (0.034, 200), 0.043
    added = Sum.of(own, other, scale, Codes("uint8", 77))
    epilogue = Epilogue(True, Codes("uint8", own[1]), "uint8", added)
    spec = Conv((1, 6, 6, 20), 20, (3, 3), padding=SAME, groups=groups, data="uint8", zero_point=3, epilogue=epilogue)
    weight, bias, multiplier = parameters(spec)
    x, residual = random(spec.shape, "uint8"), random(spec.result_shape, "uint8", 8)
    kernel = conv(spec, HOST)
    codes = requantized(sums(spec, x, weight, bias), multiplier, Codes("uint8", own[1]))
    result = run(kernel, x, residual, *kernel.constants(weight, bias, multiplier))
    np.testing.assert_array_equal(result, onnx_sum(codes, residual, own, other, scale, 77))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime adds in fixed point elsewhere")
def test_every_pair_of_codes_is_added_as_onnxruntime_does() -> None:
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).reshape(-1, 2).astype(np.uint8)
    a, b = (np.ascontiguousarray(column) for column in pairs.T)
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = ((float(np.float32(rng.uniform(0.01, 1))), int(rng.integers(256))) for _ in range(2))
        scale, zero_point = float(np.float32(rng.uniform(0.01, 2))), int(rng.integers(256))
        spec = S.Add(a.shape, "uint8", "uint8", Sum.of(first, second, scale, Codes("uint8", zero_point)))
        expected = onnx_sum(a, b, first, second, scale, zero_point)
        np.testing.assert_array_equal(run(elementwise(spec, HOST), a, b), expected)


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


POOLS = {
    "3x3, stride 2, padded": Pool("max", (2, 9, 9, 20), (3, 3), (2, 2), SAME),
    "2x2, 3 channels": Pool("max", (1, 8, 8, 3), (2, 2), (2, 2)),
    "dilated": Pool("max", (1, 9, 9, 70), (3, 2), (1, 2), ((1, 1), (0, 0)), (2, 1)),
}


@pytest.mark.parametrize("data", ["float32", "uint8", "int8"])
@pytest.mark.parametrize("name", POOLS)
def test_maxima_are_what_torch_finds(name: str, data: str) -> None:
    spec = replace(POOLS[name], data=data)
    x = random(spec.shape, data) if data != "float32" else -np.abs(random(spec.shape, data))  # below padding with zeros
    (top, _), (left, _) = spec.padding
    values = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)
    expected = F.max_pool2d(values, spec.kernel, spec.stride, (top, left), spec.dilation).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(run(pool(spec, HOST), x), expected.astype(data))


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("shape,kernel", [((2, 9, 9, 20), (3, 3)), ((1, 8, 8, 3), (2, 2)), ((1, 12, 12, 5), (6, 6))])
def test_float_means_are_what_torch_computes(
    shape: tuple[int, ...], kernel: tuple[int, int], count_padding: bool
) -> None:
    spec = Pool("average", shape, kernel, (2, 2), SAME, count_padding=count_padding)  # type: ignore[arg-type]
    x = random(shape, "float32")
    values = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    expected = F.avg_pool2d(values, kernel, 2, 1, count_include_pad=count_padding).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(run(pool(spec, HOST), x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count_padding", [True, False])
def test_means_of_codes_over_windows_are_onnxruntimes(count_padding: bool) -> None:
    shape = (1, 25, 25, 40)
    spec = Pool(
        "average", shape, (3, 3), (1, 1), SAME, data="uint8", zero_point=120, scale=0.037, result=Codes("uint8", 131),
        result_scale=0.0191, count_padding=count_padding,
    )  # fmt: skip
    x = random(shape, "uint8")
    quantized = [np.float32(0.037), np.uint8(120), np.float32(0.0191), np.uint8(131)]
    expected = onnx(
        "QLinearAveragePool", [x, *quantized], "com.microsoft", kernel_shape=(3, 3), pads=(1, 1, 1, 1), channels_last=1,
        count_include_pad=int(count_padding),
    )  # fmt: skip
    np.testing.assert_array_equal(run(pool(spec, HOST), x), expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime averages in fixed point elsewhere")
def test_means_of_codes_over_images_are_onnxruntimes() -> None:
    shape = (3, 7, 7, 50)
    spec = Pool(
        "average",
        shape,
        (7, 7),
        data="uint8",
        zero_point=120,
        scale=0.037,
        result=Codes("uint8", 131),
        result_scale=0.0071,
    )
    x = random(shape, "uint8")
    quantized = [np.float32(0.037), np.uint8(120), np.float32(0.0071), np.uint8(131)]
    expected = onnx("QLinearGlobalAveragePool", [x, *quantized], "com.microsoft", channels_last=1)
    np.testing.assert_array_equal(run(pool(spec, HOST), x), expected)


@pytest.mark.parametrize("codes", [Codes("uint8", 100), Codes("int8", -3), Codes("int8", 0, -7, 7)])
def test_values_become_codes_and_back(codes: Codes) -> None:
    ties = np.arange(-300, 300, dtype=np.float32) * np.float32(0.125)  # halves of the scale among them
    x = np.concatenate([ties, 20 * random((5000,), "float32"), np.float32([1e30, -1e30, np.inf, -np.inf])])
    scale = 0.25
    q = run(elementwise(S.Quantize(x.shape, scale, codes), HOST), x)
    zero = np.asarray(codes.zero_point, codes.dtype)
    np.testing.assert_array_equal(q, onnx("QuantizeLinear", [x, np.float32(scale), zero]).clip(*codes.ends))
    back = run(elementwise(S.Dequantize(x.shape, scale, codes.zero_point, codes.dtype), HOST), q)
    np.testing.assert_array_equal(back, onnx("DequantizeLinear", [q, np.float32(scale), zero]))


def test_float_sums_are_clamped() -> None:
    a, b = random((3, 1111), "float32"), random((3, 1111), "float32", 1)
    spec = S.Add(a.shape, clamp=(0.0, 1.0))
    np.testing.assert_array_equal(run(elementwise(spec, HOST), a, b), (a + b).clip(0, 1))


@pytest.mark.parametrize("data,result", [("uint8", "int8"), ("int8", "float32")])
def test_codes_are_looked_up_from_the_lowest(data: str, result: str) -> None:
    x, table = random((2, 5000), data), random((256,), result, 1)
    lowest = int(np.iinfo(data).min)
    np.testing.assert_array_equal(
        run(elementwise(S.Lookup(x.shape, data, result), HOST), x, table), table[x.astype(int) - lowest]
    )


# ---- Code ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile,data,instruction",
    [
        ("cortex-a53", "float32", r"fmla\s+v"), ("cortex-a53", "int8", "smlal"), ("cortex-a72", "int8", "smlal"),
        ("cortex-a76", "int8", r"sdot\s+v"), ("cortex-a76", "uint8", r"sdot\s+v"), ("neoverse-n1", "int8", r"sdot\s+v"),
        ("apple-m1", "int8", "sdot"), ("armv7", "int8", r"vmlal\.s16"), ("armv7", "float32", r"v(fma|mul)\.f32\s+q"),
        ("riscv64", "float32", r"fmadd\.s"), ("x86-64-v2", "uint8", "pmaddwd"), ("x86-64-v3", "uint8", "vpmaddwd.*ymm"),
        ("x86-64-v3", "float32", "vfmadd.*ymm"), ("x86-64-v4", "float32", "vfmadd.*zmm"),
    ],
)  # fmt: skip
def test_the_machines_own_instructions_appear(profile: str, data: str, instruction: str) -> None:
    target = tvm.target.Target(PROFILES[profile].target())
    spec = Conv((1, 6, 6, 16), 16, (3, 3), padding=SAME, data=data)
    code = assembly(spec if not spec.integer else replace(spec, epilogue=Epilogue(result=Codes(data))), target)
    assert re.search(instruction, code)


def test_vnni_appears_in_dense_and_depthwise_layers() -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"})
    spec = Conv((1, 6, 6, 16), 16, (3, 3), padding=SAME, data="uint8", epilogue=Epilogue(result=Codes()))
    assert re.search("vpdpbusd.*zmm", assembly(spec, target))
    assert re.search("vpdpbusd.*zmm", assembly(replace(spec, groups=16), target))


def assembly(spec: Conv, target: Any) -> str:
    return str(compiled(conv(spec, machine(target)), target).mod.inspect_source("asm"))


def test_sums_stay_off_the_heap() -> None:
    code = compiled(conv(replace(LAYERS["1x1, batch 2"], data="uint8"), HOST)).mod.inspect_source("ll")
    assert "TVMBackendAllocWorkspace" not in code


def test_profiles_know_what_their_cpus_can() -> None:
    def of(name: str) -> Machine:
        return machine(tvm.target.Target(PROFILES[name].target()))

    dots = {name: of(name).dot for name in PROFILES}
    assert {name for name, dot in dots.items() if dot == "sdot"} == {"cortex-a76", "neoverse-n1", "apple-m1"}
    assert {name for name, dot in dots.items() if dot == "madd"} == {"x86-64-v2", "x86-64-v3", "x86-64-v4"}
    assert [of(f"x86-64-v{n}").vector_bytes for n in (2, 3, 4)] == [16, 32, 64]
    assert of("cortex-a76").l1_bytes == 64 << 10
    assert of("riscv64").lanes("float32") == 1


def test_features_of_a_target_count_and_an_unknown_cpu_gets_the_baseline() -> None:
    def of(cpu: str, *features: str) -> Machine:
        described = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "mattr": list(features)}
        return machine(tvm.target.Target(described))

    assert of("cortex-a55").dot == "sdot"
    assert of("generic").dot == "none"
    assert of("generic", "+dotprod").dot == "sdot"


def test_one_core_needs_no_threads() -> None:
    spec = Conv((1, 28, 28, 32), 32, (3, 3), padding=SAME)
    assert "T.parallel" in conv(spec, replace(HOST, cores=2)).function.script()
    assert "T.parallel" not in conv(spec, replace(HOST, cores=1)).function.script()


@pytest.mark.parametrize(
    "rows,columns,vectors", [(56, 56, 4), (7, 7, 32), (1, 1, 63), (1, 49, 3), (4, 4, 1), (13, 5, 9)]
)
def test_a_tile_fits_the_registers_and_the_result(rows: int, columns: int, vectors: int) -> None:
    for profile in PROFILES.values():
        on = machine(tvm.target.Target(profile.target()))
        tile = tiles.for_sums(rows, columns, vectors, 9 * 64 * on.vector_bytes, on)
        assert tile.rows * tile.columns * tile.vectors + tile.vectors + 1 <= on.vector_registers
        assert tile.rows <= rows
        assert tile.columns <= columns
        assert tile.vectors <= vectors


def test_weights_that_exceed_the_cache_get_smaller_blocks() -> None:
    spec = Conv((1, 7, 7, 512), 512, (3, 3), padding=SAME)
    small, large = (direct.Plan(spec, spec, replace(HOST, l2_bytes=size)).block for size in (1 << 20, 64 << 20))
    assert small < large


# ---- Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Conv((1, 4, 4, 6), 8, groups=4), "4 groups do not divide 6 -> 8 channels"),
        (lambda: Conv((1, 2, 2, 6), 8, (3, 3)), r"kernel \(3, 3\) does not fit \(1, 2, 2, 6\)"),
        (lambda: Conv((1, 4, 4, 6), 8, stride=(0, 1)), "must be positive"),
        (lambda: Conv((1, 4, 4, 6), 8, data="int32"), "data of int32; kernels exist for uint8, int8"),
        (lambda: Conv((1, 4, 4, 6), 8, epilogue=Epilogue(result=Codes())), "a float layer has no codes"),
        (lambda: Epilogue(residual="uint8"), "a float sum needs a float residual, not uint8"),
        (lambda: Epilogue(result=Codes(), clamp=(0.0, None)), "codes are clamped by the ends of their format"),
        (lambda: Codes("uint8", low=-1), "low -1 is no uint8"),
        (lambda: Codes("int16"), "codes are uint8 or int8, not int16"),
        (lambda: Pool("min", (1, 4, 4, 6), (2, 2)), "pooling 'min'"),  # type: ignore[arg-type]
        (lambda: Pool("average", (1, 4, 4, 6), (2, 2), data="uint8"), "averages of codes, and only they, need `result`"),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_constants_that_do_not_belong_to_the_layer_are_refused() -> None:
    for groups in (1, 8):
        kernel = conv(
            Conv((1, 4, 4, 8), 8, (3, 3), groups=groups, data="int8", epilogue=Epilogue(False, Codes("int8"))), HOST
        )
        weight = np.zeros((8, 8 // groups, 3, 3), np.int8)
        with pytest.raises(ValueError, match=r"weights of shape \(8, 4, 3, 3\)"):
            kernel.constants(np.zeros((8, 4, 3, 3), np.int8), None, np.ones(1))
        with pytest.raises(ValueError, match="int8 weights, not float32"):
            kernel.constants(weight.astype(np.float32), None, np.ones(1))
        with pytest.raises(ValueError, match="needs its multiplier"):
            kernel.constants(weight)
        with pytest.raises(ValueError, match="says Epilogue"):
            kernel.constants(weight, np.zeros(8, np.int32), np.ones(1))
    with pytest.raises(ValueError, match="no weights"):
        pool(POOLS["dilated"], HOST).constants(weight)

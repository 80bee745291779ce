"""TVM's pooling, sums, tables and conversions against torch and ONNX Runtime, code by code."""

from __future__ import annotations

import platform
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("tvm", reason="needs graphopt[tvm]")

import tvm
from tvm_running import HOST, SAME, onnx, onnx_sum, random, run, run_each

from graphopt.backends.tvm import schedules as S
from graphopt.backends.tvm.machine import Machine, host
from graphopt.backends.tvm.schedules import Codes, Pool, Sum, elementwise, pool
from graphopt.backends.tvm.softmax import softmax
from graphopt.lowering.integers.arithmetic import quantize
from graphopt.lowering.integers.kernels import Softmax
from graphopt.lowering.integers.kernels import multiply as simulated_product
from graphopt.lowering.qdq import QuantizationParameters

PACKED = Machine(16, 16, packs=platform.machine() == "x86_64")


@pytest.mark.thorough
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


@pytest.mark.parametrize("on", [HOST, PACKED, Machine(16, 16)])
@pytest.mark.parametrize("codes", [Codes("uint8", 100), Codes("int8", -3), Codes("int8", 0, -7, 7)])
def test_values_become_codes_and_back(codes: Codes, on: Machine) -> None:
    ties = np.arange(-300, 300, dtype=np.float32) * np.float32(0.125)  # halves of the scale among them
    x = np.concatenate([ties, 20 * random((5000,), "float32"), np.float32([1e30, -1e30, np.inf, -np.inf])])
    scale = 0.25
    q = run(elementwise(S.Quantize(x.shape, scale, codes), on), x)
    zero = np.asarray(codes.zero_point, codes.dtype)
    np.testing.assert_array_equal(q, onnx("QuantizeLinear", [x, np.float32(scale), zero]).clip(*codes.ends))
    back = run(elementwise(S.Dequantize(x.shape, scale, codes.zero_point, codes.dtype), HOST), q)
    np.testing.assert_array_equal(back, onnx("DequantizeLinear", [q, np.float32(scale), zero]))


def test_float_sums_are_clamped() -> None:
    a, b = random((3, 1111), "float32"), random((3, 1111), "float32", 1)
    spec = S.Add(a.shape, clamp=(0.0, 1.0))
    np.testing.assert_array_equal(run(elementwise(spec, HOST), a, b), (a + b).clip(0, 1))


REPEATED = [
    ((1, 6, 5, 40), (1, 1, 1, 40)), ((2, 5, 5, 13), (2, 1, 1, 13)), ((2, 5, 5, 13), (2, 5, 5, 1)), ((3, 4, 5), (3, 4, 5)),
    ((1, 1, 1, 7), (2, 3, 3, 1)), ((2, 1, 3, 1), (1, 4, 1, 5)), ((1, 1), (1, 1)), ((9, 70), (1, 1)), ((2, 33, 3), (2, 1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("data", ["uint8", "int8"])
def test_products_of_codes_are_the_simulated_ones_whatever_repeats(data: str) -> None:
    dtype = {"uint8": torch.uint8, "int8": torch.int8}[data]
    low, high = int(np.iinfo(data).min), int(np.iinfo(data).max)
    a, b, y = (QuantizationParameters(s, low + z, low, high, dtype) for s, z in ((0.031, 90), (0.007, 0), (0.02, 133)))
    ratio = float(np.float32(a.scale) * np.float32(b.scale) / np.float32(y.scale))
    calls, expected = [], []
    for shapes in REPEATED:
        codes = [random(shape, data, seed) for seed, shape in enumerate(shapes)]
        spec = S.Multiply(*shapes, a.zero_point, b.zero_point, ratio, Codes(data, y.zero_point), data, data)
        calls.append((S.multiply(spec, HOST), codes))
        expected.append(simulated_product(a, b, y)(*map(torch.from_numpy, codes)).numpy())
    for found, answer in zip(run_each(calls), expected, strict=True):
        np.testing.assert_array_equal(found, answer)


def test_products_of_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not repeat to one shape"):
        S.Multiply((1, 4), (1, 3), 0, 0, 1.0, Codes())


@pytest.mark.thorough
@pytest.mark.parametrize("codes", [Codes("uint8", 100), Codes("int8", -3, -100, 99)])
def test_planes_become_codes_with_channels_innermost(codes: Codes) -> None:
    calls, expected = [], []
    for shape in ((2, 3, 35), (1, 2, 500), (3, 4, 64), (1, 3, 7)):
        x, scale = 20 * random(shape, "float32"), 0.25
        calls.append((S.planes(S.Planes(shape, scale, codes), HOST), [x]))
        plain = run(elementwise(S.Quantize(shape, scale, codes), HOST), x)
        expected.append(plain.transpose(0, 2, 1))
    for found, answer in zip(run_each(calls), expected, strict=True):
        np.testing.assert_array_equal(found, answer)


@pytest.mark.parametrize("codes", [Codes("uint8", 100), Codes("int8", 11), Codes("int8", -3, -100, 99)])
def test_what_is_no_number_becomes_the_least_code_in_vectors_and_alone(codes: Codes) -> None:
    """As ONNX Runtime and the simulation have it: packs would have made the largest of it."""
    low, high = codes.ends
    dtype = torch.uint8 if codes.dtype == "uint8" else torch.int8
    for kernel in (S.Quantize((1, 131), 0.1, codes), S.Planes((1, 1, 131), 0.1, codes)):
        x = random(kernel.shape, "float32")
        x[..., ::3], x[..., 1::7], x[..., 2::7] = np.nan, np.inf, -np.inf
        make = S.planes if isinstance(kernel, S.Planes) else elementwise
        expected = quantize(torch.from_numpy(x), 0.1, codes.zero_point, int(low), int(high), dtype)
        assert int(expected[..., 0]) == low
        for machine in (HOST, PACKED):
            np.testing.assert_array_equal(run(make(kernel, machine), x).ravel(), expected.numpy().ravel())


@pytest.mark.thorough
@pytest.mark.parametrize("scale", [29.592336654663086, 0.05])
def test_shares_of_a_softmax_round_as_they_are_simulated(scale: float) -> None:
    """The largest elements are equal, so that shares fall between two steps, or data are random."""
    x_grid = QuantizationParameters(float(np.float32(scale)), 0, 0, 255, torch.uint8)
    _same_shares(x_grid, QuantizationParameters(float(np.float32(1 / 255)), 0, 0, 255, torch.uint8), (2, 7, 276))


@pytest.mark.parametrize("steps", [254.4, 1020.0, 2.0**40])
def test_shares_of_a_softmax_over_few_elements_stay_within_float32(steps: float) -> None:
    """The largest element times the steps is beyond float32: shares of few elements, and of steps far below 1."""
    x_grid = QuantizationParameters(float(np.float32(0.02)), 0, 0, 255, torch.uint8)
    y_grid = QuantizationParameters(float(np.float32(1 / steps)), 0, 0, 255, torch.uint8)
    _same_shares(x_grid, y_grid, (1, 3, 8))


def _same_shares(x_grid: QuantizationParameters, y_grid: QuantizationParameters, lengths: tuple[int, ...]) -> None:
    for length in lengths:
        equal = [torch.where(torch.arange(length) < count, 200, 0) for count in range(1, 20)]
        codes = torch.cat([torch.stack(equal), torch.randint(0, 256, (2000, length))]).to(torch.uint8)
        kernel = Softmax(x_grid, y_grid, -1)
        with tvm.transform.PassContext(config=S.PASS_CONFIG):
            built = tvm.compile(softmax((len(codes), length), x_grid, y_grid), host())
        result = tvm.runtime.tensor(np.zeros(codes.shape, np.uint8))
        built["main"](*map(tvm.runtime.tensor, (codes.numpy(), kernel.exponentials(length).numpy())), result)
        assert np.array_equal(result.numpy(), kernel(codes).numpy()), length

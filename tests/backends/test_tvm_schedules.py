"""TVM's layers against torch in float64, in which sums of products of codes are exact."""

from __future__ import annotations

import platform
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="needs graphopt[tvm]")

from tvm_running import HOST, SAME, Array, onnx_sum, random, run

from graphopt.backends.tvm.machine import Machine
from graphopt.backends.tvm.schedules import Codes, Conv, Epilogue, Sum, conv

# Every way of summing that this machine can execute, with narrow vectors and few registers too.
MACHINES = {
    "host": HOST,
    "widening": Machine(16, 16),
    "scalar": Machine(4, 32),
    "by element": Machine(16, 32, by_element=True),
    "weights that do not stay cached": replace(HOST, l2_bytes=1 << 10),
    **({"madd": Machine(16, 16, dot="madd")} if platform.machine() == "x86_64" else {}),
    **({"madd256": Machine(32, 16, dot="madd")} if platform.machine() == "x86_64" and HOST.vector_bytes >= 32 else {}),
    **(
        {"madd512": replace(HOST, dot="madd"), "vnni256": replace(HOST, vector_bytes=32)}
        if HOST.vector_bytes == 64
        else {}
    ),
}
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
@pytest.mark.parametrize("layer", ["odd channels", "groups", "depthwise", "1x1, batch 2"])
def test_every_way_of_summing_is_exact(name: str, layer: str) -> None:
    check_layer(replace(LAYERS[layer], data="uint8"), MACHINES[name])


@pytest.mark.parametrize(
    ("layer", "machine", "ahead"),
    [
        ("3x3", replace(HOST, l2_bytes=1 << 10, prefetches=True), True),
        ("3x3", replace(HOST, l2_bytes=1 << 10, prefetches=False), False),
        ("3x3", replace(HOST, prefetches=True), False),  # its weights stay
        ("image in one window", replace(HOST, l2_bytes=1 << 6, prefetches=True), False),  # one block of channels
    ],
)
def test_weights_of_the_next_block_are_asked_for_where_they_do_not_stay_cached(
    layer: str, machine: Machine, ahead: bool
) -> None:
    spec = replace(LAYERS[layer], channels=96 if layer == "3x3" else 9)
    assert ("prefetch" in str(conv(spec, machine).function)) == ahead


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


@pytest.mark.thorough
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

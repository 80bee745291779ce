"""The arithmetic of quantization against ONNX Runtime's own QuantizeLinear and DequantizeLinear, bit for bit."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from graphopt.formats import FAKE_QUANTIZE, Format, dequantize, fake_quantize, quantize, scale_and_zero_point

TYPES = {
    "int8": (TensorProto.INT8, np.int8), "uint8": (TensorProto.UINT8, np.uint8),
    "int16": (TensorProto.INT16, np.int16), "uint16": (TensorProto.UINT16, np.uint16),
}  # fmt: skip


@cache
def session(kind: str, axis: int | None) -> Any:
    """x, scale, zero point -> codes, values; as ONNX Runtime computes them."""
    code = TYPES[kind][0]
    shape = [] if axis is None else ["c"]
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "roundtrip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("z", code, shape),
        ],
        [helper.make_tensor_value_info("q", code, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnxruntime(x: Tensor, scale: Tensor, zero_point: Tensor, kind: str, axis: int = -1) -> tuple[Tensor, Tensor]:
    feeds = {"x": x.numpy(), "s": scale.numpy(), "z": zero_point.numpy().astype(TYPES[kind][1])}
    codes, values = session(kind, axis if scale.dim() else None).run(None, feeds)
    return torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(values)


def tricky(scale: float, count: int = 4000) -> Tensor:
    """Values inside and outside the range, exact ties between codes, and their neighbours in float32."""
    ties = (torch.arange(-300, 300) + 0.5) * scale
    near = torch.cat([torch.nextafter(ties, torch.tensor(t)) for t in (torch.inf, -torch.inf)])
    return torch.cat([torch.randn(count) * 100 * scale, ties, near, torch.tensor([0.0, -0.0, 1e30, -1e30, 1e-38])])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0078125, 1.0, 3.1e-5, 123.4])
def test_codes_and_values_are_those_of_onnxruntime(kind: str, scale: float) -> None:
    info = np.iinfo(TYPES[kind][1])
    for zero_point in (info.min, 0, (info.min + info.max) // 2, info.max):
        s, z = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
        x = tricky(scale)
        codes, values = onnxruntime(x, s, z, kind)
        ours = quantize(x, s, z, info.min, info.max)
        assert torch.equal(ours.long(), codes)
        assert torch.equal(dequantize(ours, s, z), values)
        assert torch.equal(fake_quantize(x, s, z, info.min, info.max, -1), values)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_channel_has_its_own_grid_as_in_onnxruntime(kind: str, axis: int) -> None:
    info = np.iinfo(TYPES[kind][1])
    x = torch.randn(5, 5, 5, 7) * 30
    s = torch.rand(5) + 0.01
    z = torch.randint(info.min, info.max, (5,), dtype=torch.int32)
    codes, values = onnxruntime(x, s, z, kind, axis)
    assert torch.equal(quantize(x, s, z, info.min, info.max, axis).long(), codes)
    assert torch.equal(fake_quantize(x, s, z, info.min, info.max, axis), values)


def test_ties_go_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    codes = quantize(x, torch.tensor(1.0), torch.tensor(0), -127, 127)
    assert codes.tolist() == [0, 2, 2, 0, -2]


def test_not_a_number_stays_one() -> None:
    x = torch.tensor([1.0, torch.nan])
    assert torch.isnan(fake_quantize(x, torch.tensor(0.1), torch.tensor(0), -128, 127, -1)).tolist() == [False, True]


# ---- Formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "low", "high"),
    [
        (Format(8), -127, 127),
        (Format(8, symmetric=False), -128, 127),
        (Format(8, signed=False), 0, 255),
        (Format(8, signed=False, symmetric=False), 0, 255),
        (Format(2), -1, 1),
        (Format(4, symmetric=False), -8, 7),
        (Format(16), -32767, 32767),
        (Format(16, signed=False, symmetric=False), 0, 65535),
    ],
)
def test_the_codes_of_a_format(format: Format, low: int, high: int) -> None:
    assert (format.quant_min, format.quant_max) == (low, high)
    assert torch.iinfo(format.dtype).min <= low <= high <= torch.iinfo(format.dtype).max


@pytest.mark.parametrize("bits", [1, 0, -8, 17, 32, 8.0, "8", None])
def test_bits_outside_2_to_16_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match="from 2 to 16"):
        Format(bits)


FORMATS = st.builds(
    Format, bits=st.integers(2, 16), signed=st.booleans(), symmetric=st.booleans(), power_of_two=st.booleans()
)
ENDS = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None)
@given(format=FORMATS, one=ENDS, other=ENDS)
def test_a_grid_covers_its_range_and_holds_zero_exactly(format: Format, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), format)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert float(scale) > 0
    assert format.quant_min <= int(zero_point) <= format.quant_max
    grid = (scale, zero_point, format.quant_min, format.quant_max, -1)
    assert float(fake_quantize(torch.zeros(1), *grid)) == 0.0
    x = torch.linspace(min(low, 0.0), max(high, 0.0), 101)
    rounded = fake_quantize(x, *grid)
    # the zero point itself is rounded, which may cost the ends of an affine range another half step
    steps = 0.5 if format.symmetric else 1.0
    assert float((rounded - x).abs().max()) <= float(scale) * steps * (1 + 1e-4) + 1e-6 * max(abs(low), abs(high))
    assert torch.equal(fake_quantize(rounded, *grid), rounded)
    if format.power_of_two:
        assert float(torch.log2(scale)) == round(float(torch.log2(scale)))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_symmetric_format_uses_its_last_code_for_the_largest_value(bits: int) -> None:
    format = Format(bits)
    scale, zero_point = scale_and_zero_point(torch.tensor(-3.0), torch.tensor(1.0), format)
    assert float(scale) == pytest.approx(3 / format.quant_max)
    assert int(zero_point) == 0


def test_an_unsigned_symmetric_format_spends_no_code_on_what_is_not_there() -> None:
    format = Format(8, signed=False)
    scale, zero_point = scale_and_zero_point(torch.tensor(0.0), torch.tensor(2.0), format)
    assert (float(scale), int(zero_point)) == (pytest.approx(2 / 255), 0)
    scale, zero_point = scale_and_zero_point(torch.tensor(-1.0), torch.tensor(2.0), format)
    assert (float(scale), int(zero_point)) == (pytest.approx(2 / 127), 128)


def test_an_affine_range_ends_on_its_last_codes() -> None:
    format = Format(8, symmetric=False)
    scale, zero_point = scale_and_zero_point(torch.tensor(0.0), torch.tensor(5.1), format)
    assert (float(scale), int(zero_point)) == (pytest.approx(0.02), -128)


def test_every_channel_gets_its_own_grid() -> None:
    low, high = torch.tensor([-1.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, 2.0])
    scale, zero_point = scale_and_zero_point(low, high, Format(8))
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 1.0, 3 / 127]))  # a constant zero gets any scale
    assert zero_point.tolist() == [0, 0, 0]


def test_a_tiny_range_keeps_a_scale_that_products_survive() -> None:
    scale, _ = scale_and_zero_point(torch.tensor(0.0), torch.tensor(1e-35), Format(8))
    assert float(scale * scale) > 0


def test_a_power_of_two_is_the_next_larger() -> None:
    scale, _ = scale_and_zero_point(torch.tensor(-1.27), torch.tensor(1.27), Format(8, power_of_two=True))
    assert float(scale) == 2**-6
    exact, _ = scale_and_zero_point(torch.tensor(-127.0 / 64), torch.tensor(127.0 / 64), Format(8, power_of_two=True))
    assert float(exact) == 2**-6


# ---- Gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_passes_inside_the_range_and_stops_outside() -> None:
    x = torch.tensor([-20.0, -12.8, -12.7, 0.3, 12.7, 12.74, 20.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), -127, 127, -1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0]


def test_the_ends_move_with_the_zero_point() -> None:
    x = torch.tensor([-0.2, 0.0, 25.5, 26.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), 0, 255, -1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(("low", "high", "zeros"), [(-7, 7, [0, 0, 0]), (0, 15, [0, 4, 9]), (-127, 127, [0, 0, 0])])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradient_of_the_step_size_is_torchs_for_learnable_quantizers(
    low: int, high: int, zeros: list[int], axis: int
) -> None:
    """With the factor 1 / sqrt(N Q_P) of Esser et al. 2020, section 2.2."""
    x, gradient = torch.randn(3, 3, 5) * 2, torch.randn(3, 3, 5)
    factor = 1 / (15 * high) ** 0.5
    found = []
    for reference in (True, False):
        value, scale = x.clone().requires_grad_(), torch.tensor([0.21, 0.13, 0.37], requires_grad=True)
        if reference:
            zero_point = torch.tensor(zeros, dtype=torch.float32)
            y = torch._fake_quantize_learnable_per_channel_affine(value, scale, zero_point, axis, low, high, factor)
        else:
            y = fake_quantize(value, scale, torch.tensor(zeros, dtype=torch.int32), low, high, axis)
        y.backward(gradient)
        found.append((value.grad, scale.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_step_size_element_by_element() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([0.6, -9.0, 9.0, 1.0])
    zero_point = torch.tensor(0, dtype=torch.int32)
    fake_quantize(x, scale, zero_point, -7, 7, -1).backward(torch.tensor([1.0, 1.0, 2.0, 5.0]))
    # round(1.2) - 1.2, then the last codes, then nothing: 1.0 lies on the grid
    assert float(scale.grad) == pytest.approx((-0.2 - 7 + 2 * 7 + 0) / (4 * 7) ** 0.5)  # type: ignore[arg-type]
    assert scale.grad.shape == ()  # type: ignore[union-attr]


def test_the_operator_passes_torchs_own_checks() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    arguments = (x, torch.rand(3) + 0.1, torch.zeros(3, dtype=torch.int32), -127, 127, 0)
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    assert torch.library.opcheck(FAKE_QUANTIZE, arguments, test_utils=checks) == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize("shape", [(6,), (3, 6), (6, 3), (2, 6, 4), (1,)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_gradient_of_the_step_size_in_any_number_of_dimensions(shape: tuple[int, ...], signed: bool) -> None:
    """round(x / s) - x / s inside, the last codes outside, times 1 / sqrt(N Q_P), for one scale and along every dimension."""
    x, gradient = torch.randn(shape) * 2, torch.randn(shape)
    low, high, zero = (-7, 7, 0) if signed else (0, 15, 6)
    for axis in (-1, *range(len(shape))):
        scale = (torch.rand(shape[axis]) * 0.3 + 0.1 if axis >= 0 else torch.tensor(0.25)).requires_grad_()
        zero_point = torch.full(scale.shape, zero, dtype=torch.int32)
        fake_quantize(x, scale, zero_point, low, high, axis).backward(gradient)
        wanted = torch.zeros(scale.shape, dtype=torch.float64)
        for place in itertools.product(*map(range, shape)):
            own = place[axis] if axis >= 0 else ()
            position = float(x[place].detach()) / float(scale[own].detach())
            code = round(position)
            inside = low <= code + zero <= high
            slope = code - position if inside else min(max(code, low - zero), high - zero)
            wanted[own] += float(gradient[place]) * slope / (x.numel() / scale.numel() * high) ** 0.5
        torch.testing.assert_close(scale.grad, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 0])
def test_outside_the_range_the_gradient_is_the_difference_quotient(axis: int) -> None:
    x = torch.tensor([9.0, -9.0, 12.0])
    scale = torch.full((3,) if axis == 0 else (), 0.5).requires_grad_()
    zero_point = torch.zeros(scale.shape, dtype=torch.int32)

    def total(s: Tensor) -> Tensor:
        result: Tensor = fake_quantize(x, s, zero_point, -7, 7, axis)
        return (result * torch.tensor([1.0, 2.0, 3.0])).sum()

    total(scale).backward()
    step = torch.tensor(2.0**-6)
    found = scale.grad
    assert found is not None
    quotient = (total(scale.detach() + step) - total(scale.detach() - step)) / (2 * step)
    factor = (x.numel() / scale.numel() * 7) ** -0.5
    torch.testing.assert_close(found.sum(), quotient * factor, rtol=1e-4, atol=1e-4)
    assert zero_point.grad is None

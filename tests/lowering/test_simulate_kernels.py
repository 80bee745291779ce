"""The arithmetic of single kernels: against ONNX Runtime's operators on every pair of codes, or step by step as in its source."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qlinear import TYPES, pairs, quantized, run
from torch import Tensor

from graphopt.lowering.integers.arithmetic import Table, all_codes, f32, fma, quantize
from graphopt.lowering.integers.kernels import (
    AveragePool,
    LayerKernel,
    Softmax,
    centred,
    global_mean,
    multiply,
    sigmoid,
)
from graphopt.lowering.integers.machines import add_avx2, add_neon
from graphopt.lowering.qdq import QuantizationParameters
from graphopt.targets import architecture

on_x86 = pytest.mark.skipif(architecture() != "x86_64", reason="these are the x86 kernels")


@st.composite
def grids(draw: Any, count: int) -> list[QuantizationParameters]:
    dtype = draw(st.sampled_from(list(TYPES)))
    low, high = TYPES[dtype]
    scale = st.floats(2.0**-10, 2.0**4, width=32) | st.sampled_from([2.0**-e for e in range(8)])  # the latter make ties
    return [QuantizationParameters(draw(scale), draw(st.integers(low, high)), low, high, dtype) for _ in range(count)]


@on_x86
@settings(max_examples=60, deadline=None)
@given(grids(3))
def test_every_sum_of_two_codes(found: list[QuantizationParameters]) -> None:
    p, q = pairs(*found[:2])
    assert torch.equal(add_avx2(*found)(p, q), run("QLinearAdd", found, p, q))


@pytest.mark.thorough
@on_x86
@settings(max_examples=60, deadline=None)
@given(grids(3))
def test_an_operand_that_is_repeated_counts_as_the_second(found: list[QuantizationParameters]) -> None:
    a, b, y = found
    p, q = all_codes(a.dtype).to(a.dtype)[:, None].contiguous(), all_codes(b.dtype).to(b.dtype)[None, :].contiguous()
    assert torch.equal(add_avx2(b, a, y)(q, p), run("QLinearAdd", found, p, q))


@pytest.mark.thorough
@on_x86
@settings(max_examples=60, deadline=None)
@given(grids(3))
def test_every_product_of_two_codes(found: list[QuantizationParameters]) -> None:
    a, b, y = found
    assume(a.scale * b.scale / y.scale * 255**2 < 2**31)  # steps of the result, which the operator converts to int32
    p, q = pairs(*found[:2])
    assert torch.equal(multiply(*found)(p, q), run("QLinearMul", found, p, q))


@pytest.mark.thorough
@on_x86
@settings(max_examples=100, deadline=None)
@given(grids(2))
def test_the_sigmoid_of_every_code(found: list[QuantizationParameters]) -> None:
    x = all_codes(found[0].dtype).to(found[0].dtype)
    assert torch.equal(sigmoid(*found)(x), run("QLinearSigmoid", found, x))


@pytest.mark.thorough
@on_x86
@settings(max_examples=60, deadline=None)
@given(grids(2), st.integers(1, 400), st.integers(1, 9))
def test_global_means(found: list[QuantizationParameters], pixels: int, channels: int) -> None:
    assume(found[0].scale / found[1].scale / pixels < 255)  # from 256 on the operator refuses
    low, high = TYPES[found[0].dtype]
    x = torch.randint(low, high + 1, (3, channels, pixels), dtype=found[0].dtype)
    assert torch.equal(global_mean(x, *found), run("QLinearGlobalAveragePool", found, x, channels_last=0))


@pytest.mark.thorough
@on_x86
@settings(max_examples=60, deadline=None)
@given(
    grids(2), st.tuples(st.integers(1, 3), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(0, 1),
    st.booleans(),
)  # fmt: skip
def test_means_over_windows(
    found: list[QuantizationParameters],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    include_padding: bool,
) -> None:
    low, high = TYPES[found[0].dtype]
    x = torch.randint(low, high + 1, (2, 3, 7, 9), dtype=found[0].dtype)
    pads = tuple(min(padding, size // 2) for size in kernel)

    def pool(image: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(image, kernel, stride, pads)

    options = {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": [*pads, *pads],
        "count_include_pad": int(include_padding),
    }
    expected = run("QLinearAveragePool", found, x, **options)
    assert torch.equal(AveragePool(*found, kernel, stride, pads, pool, include_padding)(x), expected)


@on_x86
@settings(max_examples=60, deadline=None)
@given(grids(2), st.integers(1, 300))
def test_softmax(found: list[QuantizationParameters], length: int) -> None:
    x_grid, y_grid = found
    low, high = TYPES[y_grid.dtype]
    y_grid = y_grid._replace(scale=float(np.float32(1 / 255)), zero_point=low)  # as quantization chooses it
    x = torch.randint(low, high + 1, (16, length), dtype=x_grid.dtype)
    expected = run("QLinearSoftmax", [x_grid, y_grid], x, axis=-1, opset=18)
    assert torch.equal(Softmax(x_grid, y_grid, -1)(x), expected)


@pytest.mark.thorough
@on_x86
@pytest.mark.parametrize("scale", [29.592336654663086, 0.02])
def test_shares_that_fall_between_two_steps_are_rounded_as_the_operator_does(scale: float) -> None:
    """Equal largest elements have shares of 127, 63.5, 31.75 steps, ... and the sum of other codes is next to nothing, or not."""
    low, high = TYPES[torch.uint8]
    x_grid = QuantizationParameters(float(np.float32(scale)), 0, low, high, torch.uint8)
    y_grid = QuantizationParameters(float(np.float32(1 / 255)), 0, low, high, torch.uint8)
    for length in range(20, 300, 8):
        x = torch.stack([torch.where(torch.arange(length) < equal, 200, 0) for equal in range(1, 20)]).to(torch.uint8)
        expected = run("QLinearSoftmax", [x_grid, y_grid], x, axis=-1, opset=18)
        assert torch.equal(Softmax(x_grid, y_grid, -1)(x), expected), length


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_becomes_the_least_code(dtype: torch.dtype) -> None:
    """In whole vectors and behind them; MlasQuantizeLinear says so of its SSE2 and its NEON."""
    low, high = TYPES[dtype]
    grid = QuantizationParameters(float(np.float32(0.1)), low + 100, low, high, dtype)
    x = torch.linspace(-30, 30, 37)
    x[::3], x[1::7], x[2::7] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(quantize(x, *grid), quantized(x, grid))


# ---- The steps of the ARM kernels, one code at a time ---------------------------------------------------------------


def half_away(value: Fraction) -> int:
    """To the nearest, halves away from zero."""
    return int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)


def clipped(value: int, grid: QuantizationParameters) -> int:
    return max(grid.quant_min, min(grid.quant_max, value + grid.zero_point))


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(grids(3), st.integers(0, 255), st.integers(0, 255))
def test_sums_in_fixed_point(found: list[QuantizationParameters], i: int, j: int) -> None:
    a, b, y = found
    ratios = [np.float32(g.scale) / np.float32(y.scale) for g in (a, b)]
    exponent = int(np.floor(np.log2(np.float64(max(ratios)))))
    shift = 21 - exponent
    if not (13 <= shift <= 31 and all(2.0**-14 <= r < 256 for r in ratios)):
        return
    m = [int(np.rint(np.float64(r) * 2.0**shift)) for r in ratios]
    if max(m) >= 2**22:
        return
    p, q = int(all_codes(a.dtype)[i]), int(all_codes(b.dtype)[j])
    expected = clipped(half_away(Fraction((p - a.zero_point) * m[0] + (q - b.zero_point) * m[1], 2**shift)), y)
    assert int(add_neon(*found)(torch.tensor([p], dtype=a.dtype), torch.tensor([q], dtype=b.dtype))) == expected


def test_sums_out_of_the_fixed_points_range_are_computed_in_float() -> None:
    low, high = TYPES[torch.int8]
    a, b, y = (QuantizationParameters(s, 0, low, high, torch.int8) for s in (1.0, 2.0**-20, 1.0))
    p, q = pairs(a, b)
    value = (p.float() * f32(a.scale) + q.float() * f32(b.scale)) / f32(y.scale)
    assert torch.equal(add_neon(a, b, y)(p, q), torch.round(value).clamp(low, high).to(torch.int8))


@settings(max_examples=30, deadline=None)
@given(grids(3))
def test_the_two_machines_sums_are_one_step_apart_at_most(found: list[QuantizationParameters]) -> None:
    p, q = pairs(*found[:2])
    assert int((add_avx2(*found)(p, q).int() - add_neon(*found)(p, q).int()).abs().max()) <= 1


# ---- Exactness ------------------------------------------------------------------------------------------------------


def nearest_float32(value: Fraction) -> float:
    guess = np.float32(float(value))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return float(min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.int32)) & 1)))


FLOATS = st.floats(-(2.0**20), 2.0**20, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-40)


@settings(max_examples=300, deadline=None)
@given(FLOATS, FLOATS, FLOATS)
def test_a_fused_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    assert float(fma(f32(a), f32(b), f32(c))) == nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))


def test_a_fused_multiply_add_does_not_round_in_float64_on_the_way() -> None:
    a, b, c = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60  # the product ends in a half of float32's last place; c decides
    assert float(fma(f32(a), f32(b), f32(c))) == nearest_float32(Fraction(a) * Fraction(b) + Fraction(c))
    assert float((f32(a).double() * f32(b).double() + c).float()) != float(fma(f32(a), f32(b), f32(c)))


@pytest.mark.parametrize("inputs", [8, 3000])
def test_sums_are_exact_however_long(inputs: int) -> None:
    x_grid = QuantizationParameters(1.0, 255, 0, 255, torch.uint8)
    codes = torch.randint(120, 128, (4, inputs), dtype=torch.int8)
    weight = centred(codes, torch.tensor(0), x_grid)
    assert weight.dtype == (torch.float64 if inputs == 3000 else torch.float32)
    bias = torch.tensor([1, -1, 2**20, 0], dtype=torch.int32)
    kernel = LayerKernel(torch.nn.functional.linear, weight, bias, torch.ones(()), 255, 1, None)
    x = torch.randint(0, 2, (5, inputs), dtype=torch.uint8)
    expected = (x.long() - 255) @ codes.long().T + bias
    assert torch.equal(kernel(x), expected.int().float())


def test_a_table_holds_every_pair_of_codes() -> None:
    grid, signed = (
        QuantizationParameters(1.0, 0, 0, 255, torch.uint8),
        QuantizationParameters(1.0, 0, -128, 127, torch.int8),
    )
    table = Table(lambda p, q: 1000 * p + q, grid, signed)
    p, q = pairs(grid, signed)
    assert torch.equal(table(p, q), 1000 * p.int() + q.int())
    assert table(torch.tensor([[3]], dtype=torch.uint8), torch.tensor([-1, 2], dtype=torch.int8)).tolist() == [
        [2999, 3002]
    ]

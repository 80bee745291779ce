"""Every number format against a slow reference that is obviously right: exact fractions, one element at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from number_formats import ALL, FORMATS
from scipy.cluster.vq import kmeans2
from torch import Tensor

from graphopt.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_WITHOUT_SUBNORMALS,
    Binary,
    BlockFloat,
    Codebook,
    FloatFormat,
    Format,
    LogFormat,
    Method,
    NumberFormat,
    Quantizer,
    Ternary,
)
from graphopt.utils.errors import InputError

TENSORS = 10_000


def tensors(count: int, seed: int) -> Iterator[Tensor]:
    """Small tensors [3, 7] of many sizes and shapes of distribution, with zeros and repeated elements, all under 100."""
    random = torch.Generator().manual_seed(seed)
    for number in range(count):
        x = torch.randn(3, 7, generator=random)
        kind = number % 5
        if kind == 1:
            x = x**3
        elif kind == 2:
            x = x.abs() + 0.5
        elif kind == 3:
            x = torch.round(x * 2) / 2
        elif kind == 4:
            x[torch.rand(3, 7, generator=random) < 0.5] = 0.0
        scale = 2.0 ** float(torch.randint(-12, 12, (), generator=random))
        yield x * min(scale, 100.0 / max(float(x.abs().max()), 1e-30))


def fitted(format: NumberFormat, x: Tensor, number: int) -> Quantizer:
    return format.fit(x, 1 if format.block else 0, "mse" if number % 40 == 1 else "minmax")


def f32(value: Any) -> Fraction:
    return Fraction(float(np.float32(float(value))))


def grid_of(quantizer: Quantizer, index: tuple[int, int]) -> list[Fraction] | None:
    """Every number that one element of a tensor may become, ascending; None where there are too many to list."""
    format = quantizer.format
    channel = index[quantizer.axis] if format.per_channel else None
    parameters = [p if channel is None else p[channel] for p in quantizer.parameters]
    if format.bits > 8:
        return None
    if isinstance(format, Format):
        scale, zero = Fraction(float(parameters[0])), int(parameters[1])
        return [(code - zero) * scale for code in range(format.quant_min, format.quant_max + 1)]
    if isinstance(format, LogFormat):
        last, steps = int(parameters[0]), format.steps
        assert steps is not None
        levels = [f32(2.0 ** ((last - down) / steps)) for down in range(2 ** (format.bits - 1) - 1)]
        return sorted([-level for level in levels] + [Fraction(0)] + levels)
    if isinstance(format, FloatFormat):
        bias, field = 2 ** (format.exponent_bits - 1) - 1, 2**format.mantissa_bits
        numbers = {Fraction(0)}
        for exponent, mantissa in itertools.product(range(2**format.exponent_bits - 1), range(field)):
            if exponent:
                numbers.add(Fraction(field + mantissa, field) * Fraction(2) ** (exponent - bias))
            elif format.subnormals:
                numbers.add(Fraction(mantissa, field) * Fraction(2) ** (1 - bias))
        return sorted(numbers | {-n for n in numbers})
    if isinstance(format, BlockFloat):
        exponent = int(parameters[0][index[0], index[1] // format.block])
        top = 2 ** (format.bits - 1) - 1
        return [code * Fraction(2) ** exponent for code in range(-top, top + 1)]
    if isinstance(format, Binary | Ternary):
        scale, below, above = (Fraction(float(parameters[at])) for at in (0, 2, 3))
        return [-below * scale, *([] if isinstance(format, Binary) else [Fraction(0)]), above * scale]
    return sorted({Fraction(float(entry)) for entry in parameters[0]})


def check_element(quantizer: Quantizer, x: float, rounded: float, grid: list[Fraction]) -> None:
    """On the grid, and no other number of the grid is nearer (in logarithms, where the grid is logarithmic)."""
    value, found = Fraction(x), Fraction(rounded)
    slack = Fraction(1, 2**20) * max(abs(value), abs(found))  # of float32's own rounding of scales and products
    near = min(grid, key=lambda number: abs(number - found))
    assert abs(near - found) <= slack
    if isinstance(quantizer.format, LogFormat):
        least = min(number for number in grid if number > 0)
        if abs(value) >= least:
            inside = min(abs(value), grid[-1])
            ratio = math.log2(inside / abs(near)) * quantizer.format.steps  # type: ignore[operator]
            assert abs(ratio) <= 0.5 + 1e-3
            return
    flushes = isinstance(quantizer.format, FloatFormat) and not quantizer.format.subnormals
    if flushes and abs(value) < min(number for number in grid if number > 0):
        return  # checked by itself below
    if isinstance(quantizer.format, Ternary):
        return  # rounded by a threshold, which is checked by itself
    best = min(abs(number - value) for number in grid)
    assert abs(found - value) <= best + 2 * slack


@pytest.mark.many
@pytest.mark.thorough
@ALL
def test_ten_thousand_tensors_lie_on_their_grids_as_near_as_can_be(format: NumberFormat) -> None:
    """Values on the grid, idempotent, zero exact, monotone, at most half a step of error, and codes that stand for the values."""
    count = TENSORS // len(FORMATS) + 1
    least, greatest = format.code_range
    for number, x in enumerate(tensors(count, seed=format.bits)):
        quantizer = fitted(format, x, number)
        rounded, codes = quantizer(x), quantizer.quantize(x)
        assert torch.equal(quantizer.dequantize(codes), rounded)
        assert torch.equal(quantizer(rounded), rounded)
        assert torch.equal(quantizer.quantize(rounded), codes) or isinstance(
            format, Codebook
        )  # equal entries share a number
        assert least <= int(codes.min())
        assert int(codes.max()) <= greatest
        assert bool((rounded[x == 0] == 0).all()) or isinstance(format, Binary)  # which has no zero
        if not format.block and not format.per_channel:
            assert bool((rounded.flatten()[x.flatten().argsort()].diff() >= 0).all())
        low, high = quantizer.ends
        assert low <= float(rounded.min()) and float(rounded.max()) <= high * (1 + 1e-6)  # noqa: PT018
        if number % 40 < 2:
            assert not bool(quantizer(torch.zeros_like(x)).any()) or isinstance(format, Binary)
            for index in itertools.product(range(3), range(7)):
                if (grid := grid_of(quantizer, index)) is not None:
                    check_element(quantizer, float(x[index]), float(rounded[index]), grid)


@pytest.mark.parametrize("signed", [True, False])
def test_16_bit_codes_are_those_of_exact_integers(signed: bool) -> None:
    format = Format(16, signed=signed, symmetric=signed)
    for x in tensors(60, seed=3):
        quantizer = format.fit(x)
        scale, zero = quantizer.parameters
        for value, code in zip(x.flatten().tolist(), quantizer.quantize(x).flatten().tolist(), strict=True):
            quotient = np.float32(value) / np.float32(float(scale))  # ONNX divides in float32, too
            wanted = round(Fraction(float(quotient))) + int(zero)
            assert code == min(max(wanted, format.quant_min), format.quant_max)


def test_log_8_is_the_format_of_nnie() -> None:
    """The formula as its documentation gives it: z = round(16 log2 c) - 127, clamp(round(16 log2 |x|) - z, 1, 127)."""
    for x in tensors(200, seed=5):
        if not bool(x.any()):
            continue
        wide = x.double().numpy()
        z = np.round(16 * np.log2(np.abs(wide).max())) - 127
        with np.errstate(divide="ignore"):
            level = 2.0 ** ((np.clip(np.round(16 * np.log2(np.abs(wide))) - z, 1, 127) + z) / 16)
        wanted = np.where(np.abs(wide) > 2.0 ** ((z + 1) / 16 - 1), np.sign(wide) * level, 0.0)
        torch.testing.assert_close(LogFormat(8).fit(x)(x), torch.from_numpy(wanted).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("format", "native"),
    [(FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16), (FloatFormat(5, 2), torch.float8_e5m2)],
    ids=str,
)
def test_floats_are_torchs_own_bit_for_bit(format: FloatFormat, native: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(1))
    x = bits.to(torch.int32).view(torch.float32)  # every kind of float: subnormal, huge, infinite, NaN
    usual = torch.cat([tensor.flatten() for tensor in tensors(500, seed=2)]) * 2.0**-10
    for values in (x, usual):
        rounded, wanted = Quantizer(format)(values), values.to(native).float()
        assert torch.equal(torch.isnan(rounded), torch.isnan(values))
        clean = ~torch.isnan(values)
        assert torch.equal(rounded[clean], wanted[clean])
        assert torch.equal(
            Quantizer(format)(values.double())[clean].float(), wanted[clean]
        )  # the arithmetic, not a cast
        codes = Quantizer(format).quantize(values)[clean]
        patterns = values.to(native).view(torch.uint8 if format.bits == 8 else torch.int16)[clean].int()
        assert torch.equal(codes, patterns & (2**format.bits - 1))
        assert torch.equal(Quantizer(format).dequantize(codes), wanted[clean])


def test_without_subnormals_what_torch_makes_subnormal_is_zero() -> None:
    x = torch.cat([tensor.flatten() for tensor in tensors(500, seed=4)]) * 2.0**-14
    wanted = x.half()
    wanted[wanted.abs() < torch.finfo(torch.float16).tiny] = 0
    assert bool((wanted != x.half()).any())
    assert torch.equal(Quantizer(FLOAT16_WITHOUT_SUBNORMALS)(x), wanted.float())


def test_beyond_the_largest_number_floats_become_infinite_and_fitting_refuses() -> None:
    x = torch.tensor([65519.0, 65520.0, -1e6])
    assert Quantizer(FLOAT16)(x).tolist() == [65504.0, math.inf, -math.inf]
    with pytest.raises(
        InputError, match=r"1e\+06 is beyond the largest float16 number, 65504; rescale, or take .* bfloat16"
    ):
        FLOAT16.fit(x)


def test_a_block_has_the_least_exponent_that_clips_nothing() -> None:
    for x in tensors(40, seed=6):
        for format in (BlockFloat(4, block=3), BlockFloat(8, block=7), BlockFloat(3, block=20)):
            (exponents,) = format.fit(x, 1).parameters
            for row, block in itertools.product(range(3), range(exponents.shape[1])):
                elements = [Fraction(v) for v in x[row, block * format.block : (block + 1) * format.block].tolist()]
                exponent = -126
                largest = max(map(abs, elements))
                while round(largest / Fraction(2) ** exponent) > 2 ** (format.bits - 1) - 1:
                    exponent += 1
                assert int(exponents[row, block]) == exponent


def test_blocks_without_stored_exponents_find_the_same() -> None:
    for x in tensors(50, seed=7):
        stored = BlockFloat(6, block=3).fit(x, 1)
        assert torch.equal(Quantizer(stored.format, (), 1)(x), stored(x))


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("power", [1, 3])
def test_codebooks_lose_no_more_than_scipys_k_means(bits: int, power: int) -> None:
    """Ours holds an entry at zero, which costs most where there are few."""
    x = torch.randn(6000) ** power
    centres, labels = kmeans2(x.double().numpy(), 2**bits, iter=60, minit="++", seed=1)
    theirs = float(((x.double().numpy() - centres[labels]) ** 2).sum())
    ours = float((Codebook(bits).fit(x)(x) - x).double().square().sum())
    assert ours <= theirs * (1.2 if bits == 3 else 1.1)


def test_a_codebook_is_a_fixed_point_of_lloyds_iteration() -> None:
    x = torch.randn(500)
    quantizer = Codebook(3).fit(x)
    codes, table = quantizer.quantize(x), quantizer.parameters[0]
    for code, entry in enumerate(table.tolist()):
        if entry != 0.0:
            assert float(x[codes == code].double().mean()) == pytest.approx(entry, rel=1e-5)
    assert 0.0 in table.tolist()


@pytest.mark.parametrize("format", [LogFormat(3), BlockFloat(4, block=8), Codebook(2), Format(4)], ids=str)
def test_importance_moves_the_error_to_where_it_counts_less(format: NumberFormat) -> None:
    x = torch.cat([torch.rand(400) * 0.2 + 0.05, torch.rand(8) + 2])[torch.randperm(408)]
    axis = 0 if format.block else -1
    importance = torch.where(x < 1, 1.0, 1e-4)
    plain, weighted = format.fit(x, axis, "mse"), format.fit(x, axis, "mse", importance)

    def cost(quantizer: Quantizer) -> float:
        return float(((quantizer(x) - x).square() * importance).sum())

    assert cost(weighted) < 0.9 * cost(plain)


@ALL
def test_the_least_squared_error_is_never_more_than_that_of_the_range(format: NumberFormat) -> None:
    for x in tensors(40, seed=8):
        axis = 1 if format.block else 0
        errors = [float((format.fit(x, axis, method)(x) - x).double().square().sum()) for method in ("mse", "minmax")]
        assert errors[0] <= errors[1] * (1 + 1e-6)


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("format", [f for f in FORMATS if not f.block and not f.per_channel], ids=str)
def test_values_are_fitted_to_a_distribution_as_to_the_elements_themselves(
    format: NumberFormat, method: Method
) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(2)).round(decimals=2)
    seen, counts = x.double().unique(return_counts=True)
    found = format.fit_values(float(x.min()), float(x.max()), seen, counts.double(), -1, method)
    error, wanted = (float((q(x) - x).square().mean()) for q in (found, format.fit(x, -1, method)))
    if isinstance(format, Codebook):  # begins elsewhere, and is no worse
        assert error <= wanted * 1.02
    else:
        assert error == pytest.approx(wanted, rel=1e-5)

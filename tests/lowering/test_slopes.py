"""Functions of codes as two slopes: every entry, or none at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.lowering.integers.arithmetic import all_codes, dequantize, quantize
from graphopt.lowering.integers.slopes import Slopes
from graphopt.lowering.qdq import QuantizationParameters


def grid(
    scale: float, zero_point: int, dtype: torch.dtype = torch.uint8, narrow: bool = False
) -> QuantizationParameters:
    info = torch.iinfo(dtype)
    ends = (-7, 7) if narrow else (info.min, info.max)
    return QuantizationParameters(float(torch.tensor(scale)), zero_point, *ends, dtype)


def entries(
    function: Callable[[Tensor], Tensor], x: QuantizationParameters, y: QuantizationParameters, channels: int
) -> Tensor:
    values = dequantize(all_codes(x.dtype), *x).expand(1, channels, -1)
    return quantize(function(values), *y)[0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_a_prelu_between_any_two_grids_is_two_slopes_for_each_channel(dtype: torch.dtype) -> None:
    """Slopes of either sign, and above one; grids that differ, that saturate, and whose steps are each other's halves."""
    torch.manual_seed(0)
    low = torch.iinfo(dtype).min
    slopes = torch.cat([torch.tensor([0.0, 1.0, 0.5, -0.25, 3.0]), torch.randn(59)])
    for number in range(40):
        scales = (torch.rand(2) + 0.1).tolist() if number else [0.5, 1.0]
        x, y = (
            grid(scale, low + int(zero), dtype) for scale, zero in zip(scales, torch.randint(0, 256, (2,)), strict=True)
        )
        table = entries(lambda v: F.prelu(v, slopes), x, y, len(slopes))
        found = Slopes.fit(table, x, y)
        assert found is not None, (x, y)
        assert torch.equal(found(all_codes(dtype).to(dtype).expand(1, len(slopes), -1))[0], table)


def test_codes_that_do_not_occur_are_not_asked_for() -> None:
    x, y = grid(0.1, 0, torch.int8, narrow=True), grid(0.1, 0, torch.int8)
    table = entries(lambda v: F.leaky_relu(v, 0.1), x, y, 1)
    outside = (all_codes(x.dtype) < x.quant_min) | (all_codes(x.dtype) > x.quant_max)
    assert Slopes.fit(torch.where(outside, 55, table).to(torch.int8), x, y) is not None


@pytest.mark.parametrize("function", [F.silu, F.hardswish, F.relu6, lambda v: v + 1])
def test_what_bends_or_is_moved_has_no_slopes(function: Callable[[Tensor], Tensor]) -> None:
    x, y = grid(0.05, 120), grid(0.05, 100)
    assert Slopes.fit(entries(function, x, y, 1), x, y) is None

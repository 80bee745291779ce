"""Gradients of every number format."""

from __future__ import annotations

import itertools

import pytest
import torch
from number_formats import ALL

from graphopt.formats import (
    BFLOAT16,
    Binary,
    Codebook,
    NumberFormat,
    Quantizer,
    Ternary,
)


@ALL
def test_the_gradient_passes_straight_through_inside_and_stops_outside(format: NumberFormat) -> None:
    x = torch.randn(3, 7)
    quantizer = format.fit(x, 1 if format.block else 0)
    probe, gradient = (x * 0.9).requires_grad_(), torch.randn(3, 7)
    quantizer(probe).backward(gradient)
    assert torch.equal(probe.grad, gradient)  # type: ignore[arg-type]
    far = (torch.sign(x) * 1e30).requires_grad_()
    quantizer(far).backward(gradient)
    stops = not isinstance(format, Codebook | Binary | Ternary) and format != BFLOAT16  # clip nothing; reaches as far
    assert torch.equal(far.grad, torch.zeros(3, 7) if stops else gradient)  # type: ignore[arg-type]
    assert torch.equal(quantizer.clipped(far), torch.full((3, 7), stops))


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_entry_of_a_table_gets_the_gradients_of_its_members(per_channel: bool) -> None:
    x, gradient = torch.randn(4, 9), torch.randn(4, 9)
    quantizer = Codebook(2, per_channel).fit(x, 0)
    table = quantizer.parameters[0].clone().requires_grad_()
    Quantizer(quantizer.format, (table,), quantizer.axis)(x).backward(gradient)
    codes, wanted = quantizer.quantize(x), torch.zeros_like(table)
    for row, column in itertools.product(range(4), range(9)):
        place = (row, int(codes[row, column])) if per_channel else (int(codes[row, column]),)
        with torch.no_grad():
            wanted[place] += gradient[row, column]
    torch.testing.assert_close(table.grad, wanted)


@ALL
def test_the_operators_pass_torchs_own_checks(format: NumberFormat) -> None:
    x = torch.randn(3, 7)
    quantizer = format.fit(x, 1 if format.block else 0)
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    found = torch.library.opcheck(format.operator, (x.requires_grad_(), *quantizer.arguments), test_utils=checks)
    assert found == dict.fromkeys(checks, "SUCCESS")


@ALL
def test_not_a_number_stays_one(format: NumberFormat) -> None:
    x = torch.randn(3, 7)
    quantizer = format.fit(x, 1 if format.block else 0)
    x[1, 2] = torch.nan
    assert bool(torch.isnan(quantizer(x)[1, 2]))
    assert not bool(torch.isnan(quantizer(x)[0]).any())

"""XNNPACK's kernels, each over all codes and on many grids, against the arithmetic of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphopt.lowering.integers import xnnpack
from graphopt.lowering.integers.arithmetic import dequantize, f32
from graphopt.lowering.qdq import Q, QuantizationParameters

pytest.importorskip("executorch", reason="the ExecuTorch backend needs graphopt[executorch]")

from graphopt.backends.executorch.compiling import Delegated
from graphopt.backends.executorch.running import Program

CODES = torch.arange(-128, 128).to(torch.int8)
PAIRS = (CODES.repeat_interleave(256).reshape(1, 1, 256, 256), CODES.repeat(256).reshape(1, 1, 256, 256))
Grid = QuantizationParameters


def grids(count: int, seed: int) -> list[Grid]:
    draw = torch.Generator().manual_seed(seed)
    scales = 10 ** (torch.rand(count, generator=draw, dtype=torch.float64) * 3 - 3)
    zeros = torch.randint(-128, 128, (count,), generator=draw)
    return [Grid(float(s), int(z), -128, 127, torch.int8) for s, z in zip(scales, zeros, strict=True)]


def quantized(x: Tensor, grid: Grid) -> Tensor:
    found: Tensor = Q.quantize_per_tensor.default(x, *grid)
    return found


def on_grid(x: Tensor, grid: Grid) -> Tensor:
    found: Tensor = Q.dequantize_per_tensor.default(quantized(x, grid), *grid)
    return found


def run(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """What a function of quantizers and operators answers there, all of it by XNNPACK."""

    class Whole(nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return function(*given)

    program = Delegated(torch.export.export(Whole(), inputs, strict=False))
    assert {call.where for call in program.calls} == {"xnnpack integer"}
    answers = Program(program.content(), "test.pte")([x.numpy() for x in inputs], threads=1)
    return [torch.from_numpy(answer) for answer in answers]


@pytest.mark.parametrize("kind", ["add", "subtract", "multiply"])
def test_pairs_of_codes(kind: str) -> None:
    """Every pair, on grids whose results cover many codes, and on some where they saturate."""
    operator = {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul}[kind]
    cases = []
    for n, (a, b, y) in enumerate(zip(grids(12, 1), grids(12, 2), grids(12, 3), strict=True)):
        if kind != "multiply":
            b = b._replace(scale=a.scale * float(2.0 ** (n % 7 - 3)))
        whole = a.scale * b.scale * 64 if kind == "multiply" else a.scale + b.scale
        cases.append((a, b, y._replace(scale=whole * (0.3 + 0.17 * n))))
    inputs = [dequantize(codes, *grid) for a, b, _ in cases for codes, grid in zip(PAIRS, (a, b), strict=True)]

    def all_of_them(*x: Tensor) -> list[Tensor]:
        pairs = zip(cases, x[::2], x[1::2], strict=True)
        return [quantized(operator(on_grid(p, a), on_grid(q, b)), y) for (a, b, y), p, q in pairs]

    for (a, b, y), answer in zip(cases, run(all_of_them, *inputs), strict=True):
        assert torch.equal(answer, getattr(xnnpack, kind)(a, b, y)(*PAIRS))


def test_means_of_images() -> None:
    """Ties, too: on equal grids of 4 x 4 pixels one mean of sixteen is halfway between two codes."""
    sizes = [(4, 4), (2, 2), (7, 7), (1, 5), (8, 8), (14, 14), (3, 2), (4, 4)]
    cases = [(x, x if n % 2 == 0 else x._replace(scale=x.scale / 3, zero_point=n)) for n, x in enumerate(grids(8, 4))]
    draw = torch.Generator().manual_seed(5)
    codes = [torch.randint(-128, 128, (1, 256, *size), generator=draw).to(torch.int8) for size in sizes]
    inputs = [dequantize(c, *x) for c, (x, _) in zip(codes, cases, strict=True)]

    def all_of_them(*given: Tensor) -> list[Tensor]:
        return [quantized(on_grid(v, x).mean([2, 3], keepdim=True), y) for v, (x, y) in zip(given, cases, strict=True)]

    for c, (x, y), answer in zip(codes, cases, run(all_of_them, *inputs), strict=True):
        assert torch.equal(answer, xnnpack.mean(c, x, y))


def test_rounding_to_codes() -> None:
    """Halfway between two codes, and the floats next to that, where dividing by a scale is not multiplying by its inverse."""
    cases = grids(8, 6)
    halves = [((torch.arange(-140, 140) + 0.5) * f32(g.scale)).reshape(1, 1, 14, 20) for g in cases]
    near = [torch.cat([h, h.nextafter(h + 1), h.nextafter(h - 1), h * 1000], 1) for h in halves]
    answers = run(lambda *given: [quantized(x, grid) for x, grid in zip(given, cases, strict=True)], *near)
    for grid, values, answer in zip(cases, near, answers, strict=True):
        assert torch.equal(answer, xnnpack.quantize(values, *grid))

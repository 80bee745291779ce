"""Memory that is given back to the system, and what rounding a large weight takes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphopt.formats.uniform import dequantize, quantize
from graphopt.utils.memory import LARGE, give_back


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_free_blocks_below_others_are_given_back_where_a_network_is_large() -> None:
    blocks = [torch.ones(2**14) for _ in range(2000)]  # 64 KB each
    last, full = blocks[-1], resident()
    blocks.clear()
    give_back(LARGE - 1)
    kept = resident()
    give_back(LARGE)
    assert resident() < kept - 2**26
    assert kept <= full
    assert last.sum() == 2**14


class _Made(TorchDispatchMode):
    """Counts what operators make, without views and what is computed in place."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not any(value.alias_info for value in func._schema.returns):
            self.elements += found.numel()
        return found


@pytest.mark.parametrize("axis", [-1, 0])
def test_rounding_a_weight_makes_few_copies_of_it(axis: int) -> None:
    x = torch.randn(64, 100)
    scale, point = (torch.tensor(0.1), torch.tensor(3)) if axis < 0 else (torch.rand(64) + 0.1, torch.arange(64) % 5)
    before = x.clone()
    with _Made() as made:
        codes = quantize(x, scale, point, -128, 127, axis)
    assert made.elements == x.numel()
    kept = codes.clone()
    with _Made() as made:
        dequantize(codes, scale, point, axis)
    assert made.elements <= 2 * x.numel()
    assert torch.equal(x, before)
    assert torch.equal(codes, kept)

"""Residual sums in TVM: each branch is rounded to codes of its own before it is added, whatever its zero point is.

A branch behind ReLU has the zero point 0 in unsigned codes, where rounding by adding and subtracting a large number looks like
nothing to a compiler that simplifies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from simulated import quantized
from torch import Tensor, nn

import graphopt
from graphopt.targets import Target, find

tvm = pytest.importorskip("tvm", reason="needs graphopt[tvm]")
from graphopt.backends.tvm import lower

Sum = Callable[[Tensor, Tensor], Tensor]
SUMS: dict[str, Sum] = {
    "both clipped": lambda a, b: F.relu(F.relu(a) + F.relu(b)),
    "one clipped": lambda a, b: F.relu(a + F.relu(b)),
    "the other clipped": lambda a, b: F.relu(F.relu(a) + b),
    "clipped alone": lambda a, b: F.relu(a) + F.relu(b),
    "clipped above": lambda a, b: F.relu6(a) + F.relu6(b),
    "not clipped": lambda a, b: a + b,
}


class Branches(nn.Module):
    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, channels, 3, padding=1), nn.Conv2d(8, channels, 1)
        self.last, self.how = nn.Conv2d(channels, 4, 1), how

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(SUMS[self.how](self.one(x), self.two(x)))
        return found


def plain_x86(cpu: str) -> Target:
    """Kernels of another x86 CPU than the one at hand."""
    target = find("tvm-x86")
    code = replace(target.runtime.code, triple="x86_64-linux-gnu", cpu=cpu, features=(), compiler="g++")  # type: ignore[type-var]
    return target.replace(runtime=replace(target.runtime, code=code))


@pytest.mark.parametrize("channels", [16, 5, 24])
@pytest.mark.parametrize("how", SUMS)
@pytest.mark.parametrize("cpu", ["here", "x86-64-v3", "x86-64-v2"])
def test_sums_are_those_of_the_simulation(cpu: str, how: str, channels: int) -> None:
    torch.manual_seed(0)
    model, x = Branches(channels, how).eval(), torch.randn(2, 8, 11, 11)
    graph = quantized(model, "tvm-x86", x)
    target = find("tvm-x86") if cpu == "here" else plain_x86(cpu)
    lines = graphopt.simulate(graph, target).mismatches(lower(graph, target), torch.randn(2, 8, 11, 11))
    assert any("add" in line.name or "relu" in line.name or "one" in line.name for line in lines)
    assert not [line for line in lines if line.differing]

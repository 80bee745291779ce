"""Reports of x86 artifacts say where sums can saturate on the CPU that they were measured on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.backends.onnxruntime.audit import artifacts
from graphopt.targets import architecture

X = torch.rand(2, 3, 8, 8)


def optimized(target: str, weight: float) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(weight)  # type: ignore[union-attr,operator]
            layer.weight[:, 0, 0, 0] = 1.0  # type: ignore[index]
    return graphopt.optimize(model, X, target=target, calibration=[X], measure=False)


@pytest.mark.skipif(architecture() != "x86_64", reason="an x86-64 CPU runs it")
@pytest.mark.parametrize(("here", "weight", "warned"), [(True, 1.0, True), (True, 0.0, False), (False, 1.0, False)])
def test_layers_that_can_saturate_here_are_warned_of(
    here: bool, weight: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "adds_pairs_here", lambda of: here)
    warnings = [w for w in optimized("x86", weight).report.warnings if "can saturate on this CPU" in w]
    assert len(warnings) == warned
    if warned:
        assert "sums of 2 layers (0, 2) can saturate on this CPU, which has no VNNI" in warnings[0]
        assert "take the target 'x86-avx2', or 'host'" in warnings[0]


@pytest.mark.thorough
def test_seven_bits_and_signed_codes_are_not() -> None:
    for target in ("x86-avx2", "arm"):
        assert not [w for w in optimized(target, 1.0).report.warnings if "saturate" in w]

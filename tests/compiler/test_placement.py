"""Parts that are slower in integer stay in float, for the target `host`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rewriting import randomised
from torch import nn

import graphopt
from graphopt.artifacts import registry
from graphopt.compiler import placement
from graphopt.compiler.work import Work
from graphopt.evaluation.kernel_costs import KernelCosts, PartCost
from graphopt.utils.errors import CaptureError

X = torch.randn(2, 3, 8, 8)
SECOND = [PartCost("2", ("2", "3"), 2.0, 1.0, {"0": 1})]


def optimized(**chosen: Any) -> Any:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    chosen = {"target": "host", "runtime": "onnxruntime", "calibration": [X]} | chosen
    return graphopt.optimize(randomised(layers).eval(), X, **chosen)


@pytest.fixture
def slow_second(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The second layer is said to be slow in integer, and calls to take so long."""
    monkeypatch.setattr(placement, "slower_in_integer", lambda work, artifact: SECOND)
    return lambda *ms: monkeypatch.setattr(Work, "milliseconds", lambda *_: list(ms))


def test_a_part_stays_in_float_where_the_whole_is_faster(slow_second: Any) -> None:
    slow_second(3.0, 2.0)
    result = optimized()
    (note,) = [n for n in result.report.notes if "stay in float" in n]
    assert "1 part whose kernels are slower in integer here (2) stay in float: a call takes 2 ms in place of 3" in note
    assert 0.3 < result.report.integer_macs < 0.8
    assert len([s for s in result.report.steps if s.name == "Quantize"]) == 1
    assert any(stage.name == "layers in float, tried" for stage in result.report.timings.stages)


@pytest.mark.thorough
def test_all_stays_in_integer_where_the_whole_is_slower(slow_second: Any) -> None:
    slow_second(2.0, 3.0)
    result = optimized()
    assert any("in integer all the same: with them in float a call takes 3 ms, not 2" in n for n in result.report.notes)
    assert result.report.integer_macs == 1


@pytest.mark.thorough
def test_what_cannot_be_in_float_is_told(slow_second: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_second(3.0, 2.0)
    made = placement._in_float

    def unknown(*args: Any) -> Any:
        raise CaptureError("no such layer")

    def broken(work: Any, parts: Any, begun: Any) -> Any:
        other = made(work, parts, begun)
        monkeypatch.setattr(type(other), "run", unknown)
        return other

    monkeypatch.setattr(placement, "_in_float", broken)
    result = optimized()
    assert any("slower in integer here stay so: no such layer" in n for n in result.report.notes)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "chosen",
    [
        {"target": "x86"},
        {"measure": False},
        {"average_bits": 6},
        {"passes": "fold-batch-norm, quantize"},
        {"keep_macs": 0.9},
    ],
)
def test_it_is_asked_only_where_a_recipe_quantizes_for_this_machine(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(placement, "slower_in_integer", asked)
    if chosen.get("target"):
        chosen = chosen | {"runtime": None}
    optimized(**chosen)


@pytest.mark.parametrize(("slow", "expected"), [(("0",), ["0"]), (("0", "2", "4"), [])])
def test_where_every_layer_is_slower_none_is_chosen(
    slow: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> KernelCosts:
        names = ("0", "2", "4")
        parts = [PartCost(name, (name,), 9.0 if name in slow else 1.0, 2.0, {}) for name in names]
        return KernelCosts(tuple(parts), 1e-6)

    monkeypatch.setattr(KernelCosts, "measure", measured)
    found: list[str] = []
    real = placement.slower_in_integer

    def chosen(work: Any, artifact: Any) -> list[PartCost]:
        found.extend(part.name for part in real(work, artifact))
        return []

    monkeypatch.setattr(placement, "slower_in_integer", chosen)
    optimized()
    assert found == expected


def test_the_float_network_is_lowered_once_for_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[bool] = []
    real = registry.backend("onnxruntime").lower

    def counted(graph: Any, *args: Any, **options: Any) -> Any:
        lowered.append("quantize" not in str(graph))
        return real(graph, *args, **options)

    counting = replace(registry.backend("onnxruntime"), lower=counted)
    monkeypatch.setattr(registry, "backend", lambda name: counting)
    result = optimized()
    assert sum(lowered) == 1
    assert result.report.latency is not None
    assert result.report.size_before is not None

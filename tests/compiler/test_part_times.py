"""Parts timed by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.trace import Trace
from graphopt.compiler.part_times import PartTimes
from graphopt.evaluation.parts import parts
from graphopt.evaluation.resized import Alone, Resizing
from graphopt.ir.graph import Graph
from graphopt.targets import architecture, host
from graphopt.utils.errors import InputError


def alone(share: float = 1.0) -> list[Alone]:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    graph = Graph.capture(model.eval(), torch.randn(1, 3, 32, 32))
    trace = Trace(graph)
    found = groups(graph, trace)
    resize = Resizing(graph, found, trace)
    kept = [np.arange(len(units)) < share * len(units) for units in resize.lengths.everything]
    return [part for each in parts(graph) if (part := resize(each, kept))]


@pytest.mark.parametrize("integer", [True, False])
def test_times_are_measured_once(tmp_path: Path, integer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times = PartTimes(host("onnxruntime"), integer=integer, cache=tmp_path)
    first = times(alone())
    assert all(ms > 0 for ms in first)
    assert first[1] > first[0] / 2  # 20 times the work
    monkeypatch.setattr(PartTimes, "fresh", lambda *_: pytest.fail("measured again"))
    again = PartTimes(host("onnxruntime"), integer=integer, cache=tmp_path)
    assert again(alone()) == first
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_only_what_is_not_known_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = PartTimes(host("onnxruntime"), cache=tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(PartTimes, "fresh", lambda _, some: asked.append(len(some)) or [1.0] * len(some))
    times(alone())
    times([*alone(), *alone(0.5), *alone(0.5)])
    assert asked == [2, 2]


def test_a_damaged_file_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = PartTimes(host("onnxruntime"), cache=tmp_path)
    monkeypatch.setattr(PartTimes, "fresh", lambda _, some: [1.0] * len(some))
    tmp_path.mkdir(exist_ok=True)
    for text in ("{", "[1, 2]", '{"a": "x"}'):
        times.file.write_text(text)
        assert times(alone()) == [1.0, 1.0]


def test_another_architecture_cannot_be_timed() -> None:
    other = "arm" if architecture() == "x86_64" else "x86"
    with pytest.raises(InputError, match="nothing can be timed for it here"):
        PartTimes(other)

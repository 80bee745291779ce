"""Runtimes and targets: our own, and those that packages of others add."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import graphopt
from graphopt.artifacts import registry
from graphopt.artifacts.backend import Backend, Tuning, cannot_be_tuned, runs_here_only
from graphopt.compiler import made_up
from graphopt.compiler.latency import LatencyTimer
from graphopt.ir.graph import Graph
from graphopt.targets import find, names
from graphopt.utils.errors import InputError

PACKAGE = """
from dataclasses import replace

from graphopt.artifacts.backend import runs_here_only
from graphopt.backends.onnxruntime.backend import BACKEND as ONNXRUNTIME
from graphopt.targets import Runtime, find

BACKEND = replace(ONNXRUNTIME, name="echo", connect=runs_here_only)
TARGET = find("x86").replace(name="board", runtime=Runtime("echo", architecture="x86_64"))
NO_TARGET = "board"
"""
ENTRY_POINTS = """
[graphopt.backends]
echo = board_support:BACKEND
[graphopt.targets]
board = board_support:TARGET
wrong = board_support:NO_TARGET
gone = board_support.missing:TARGET
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with entry points, as pip leaves it."""
    (tmp_path / "board_support.py").write_text(PACKAGE)
    info = tmp_path / "board_support-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: board-support\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    importlib.invalidate_caches()


def test_a_package_adds_a_runtime_and_a_target(installed: None, tmp_path: Path) -> None:
    assert "board" in names()
    assert registry.names() == ["executorch", "onnxruntime", "packed", "tvm", "echo"]
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(16, 4)
    result = graphopt.optimize(model, x, target="board", calibration=x, measure=False)
    assert result.artifact.manifest.runtime == "echo" == registry.backend("echo").name
    result.artifact.save(tmp_path / "deployed")
    assert torch.equal(graphopt.load(tmp_path / "deployed")(x), result.artifact(x))


def test_a_runtime_of_a_package_is_timed(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up, "architecture", lambda: "x86_64")
    graph = Graph.capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), torch.randn(1, 4))
    timer = LatencyTimer("board", cache=tmp_path / "latency.json", repeats=5)
    first = timer([graph])
    assert timer([graph]) == first
    assert registry.version("echo") == "1.0"
    monkeypatch.setattr(registry.plugins, "version", lambda group, name: "2.0")
    monkeypatch.setattr(LatencyTimer, "fresh", lambda self, graphs: [7.0])
    assert timer([graph]) == [7.0], "another release is measured anew"


def test_what_a_package_adds_wrongly_is_refused_by_name(installed: None) -> None:
    with pytest.raises(InputError, match="board_support:NO_TARGET is a str, not a Target"):
        find("wrong")
    with pytest.raises(InputError, match="the Target named 'gone', cannot be imported"):
        find("gone")
    with pytest.raises(InputError, match="echo runs on this machine only; leave out rpc://pi:9090"):
        registry.backend("echo").connect("rpc://pi:9090", find("board"))


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no runtime 'tflite'; it has executorch, onnxruntime, packed, tvm"):
        registry.backend("tflite")


@pytest.mark.parametrize("name", [n for n in registry.RUNTIMES if registry.available(n)])
def test_every_backend_of_ours_says_what_it_can_and_refuses_the_rest(name: str) -> None:
    backend = registry.backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    target = find({"executorch": "executorch", "onnxruntime": "x86", "packed": "nnie", "tvm": "tvm-x86"}[name])
    if backend.check_tuning is cannot_be_tuned:
        with pytest.raises(InputError, match=f"the kernels of {target.name!r} cannot be tuned"):
            backend.check_tuning(target, Tuning(5))
        with pytest.raises(InputError, match=f"the kernels of {target.name!r} cannot be tuned"):
            backend.tune(Graph.capture(nn.ReLU().eval(), torch.zeros(1)), target, tuning=Tuning(5))
    if backend.connect is runs_here_only:
        with pytest.raises(InputError, match=f"{name} runs on this machine only"):
            backend.connect("rpc://pi:9090", target)


def test_a_backend_that_lacks_a_part_cannot_be_made() -> None:
    with pytest.raises(
        TypeError, match="missing 4 required keyword-only arguments: 'lower', 'load', 'audit', and 'simulate'"
    ):
        Backend(name="half")  # type: ignore[call-arg]

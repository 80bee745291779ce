"""What tests of the command line share: a folder of their own with models, and a stand-in for `graphopt.optimize`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import MODELS

from graphopt.artifacts.report import Report


@pytest.fixture
def optimize_call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for `graphopt.optimize`; holds what it was called with."""
    call: dict[str, Any] = {}

    def optimize(model: Any, example_inputs: Any = None, **options: Any) -> Any:
        call.update(model=model, example=example_inputs, **options)
        if isinstance(call.get("raises"), BaseException):
            raise call["raises"]
        artifact = SimpleNamespace(save=lambda folder: Path(folder).resolve())
        return SimpleNamespace(artifact=artifact, report=Report("Net", options["target"].name))

    monkeypatch.setitem(sys.modules, "graphopt.compiler.optimize", SimpleNamespace(optimize=optimize))
    return call


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cli_models", raising=False)

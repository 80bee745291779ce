"""`graphopt doctor`: what is there, what is not, and how to get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphopt.artifacts import registry
from graphopt.cli.main import app
from graphopt.compiler import doctor
from graphopt.targets import architecture, names


def test_every_target_runs_here_or_says_why_not() -> None:
    found = doctor.examine()
    assert list(found.targets) == names()
    assert found.targets["host"] == ""
    assert "vendor" in found.targets["hexagon"]
    assert "GPU" in found.targets["tvm-cuda"]
    other = "tvm-arm64" if architecture() == "x86_64" else "x86"
    assert found.targets[other].startswith("is for ")


def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    available = registry.available
    monkeypatch.setattr(registry, "available", lambda name: name != "tvm" and available(name))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = doctor.examine()
    (tvm,) = (each for each in found.runtimes if each.name == "tvm")
    assert (tvm.found, tvm.remedy) == ("", "pip install 'graphopt[tvm]'")
    assert "not installed" in found.targets["tvm-x86"]
    assert all(each.remedy == f"apt install {doctor.PROGRAMS[each.name][0]}" for each in found.programs)
    text = str(found)
    assert "missing" in text
    assert "pip install 'graphopt[tvm]'" in text


def test_extras_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for distribution, (extra, _) in doctor.EXTRAS.items():
        assert any(line.startswith(distribution) for line in project["optional-dependencies"][extra]), distribution
    for runtime in registry.RUNTIMES.values():
        assert not runtime.extra or runtime.extra in project["optional-dependencies"]


def test_the_linkers_are_those_that_lowering_takes() -> None:
    build = pytest.importorskip("graphopt.backends.tvm.build", reason="needs TVM")
    assert build.LINKERS is doctor.LINKERS
    others = {arch: linker for arch, (linker, _) in build.LINKERS.items() if linker in doctor.PROGRAMS}
    assert set(others) == set(build.LINKERS) - {architecture()}


def test_the_command_keeps_what_it_found(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 0, result.output
    assert "targets whose artifacts run here" in result.output
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["architecture"].startswith(architecture())

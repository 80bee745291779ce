"""`graphopt.compare`: two artifacts of one model side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting import randomised
from torch import nn
from typer.testing import CliRunner

import graphopt
from graphopt.artifacts.artifact import Artifact
from graphopt.cli.main import app
from graphopt.ir.cost import sqnr
from graphopt.utils.errors import InputError

IMAGES = torch.randn(24, 3, 8, 8)


def deployed(inputs: torch.Tensor = IMAGES, **options: object) -> Artifact:
    torch.manual_seed(0)
    layers = [nn.Conv2d(inputs.shape[1], 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)]
    model = randomised(nn.Sequential(*layers)).eval()
    return graphopt.optimize(
        model, inputs[:1], target="x86-avx2", calibration=inputs, measure=False, **options
    ).artifact  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sides() -> tuple[Artifact, Artifact]:
    return deployed(), deployed(passes=[])


def test_size_time_answers_and_layers(sides: tuple[Artifact, Artifact]) -> None:
    first, second = sides
    found = graphopt.compare(
        first, second, calibration=IMAGES, evaluate=lambda model: float(model(IMAGES).mean()), runs=5
    )
    assert found.first.size_bytes == first.size_bytes < found.second.size_bytes == second.size_bytes
    assert found.first.call_ms is not None
    assert found.second.call_ms is not None
    assert found.speedup is not None
    assert found.speedup > 0
    ours, theirs = first(IMAGES), second(IMAGES)
    assert found.samples == 24
    assert found.agreement == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    assert found.sqnr_db == {second.manifest.outputs[0].name: pytest.approx(sqnr(theirs, ours), abs=1e-6)}
    assert found.first.accuracy == pytest.approx(float(ours.mean()))
    assert {"0", "3"} <= set(found.first.layers)
    text = str(found)
    assert "smaller" in text
    assert "answers on 24 samples" in text


def test_an_artifact_beside_itself_is_equal(sides: tuple[Artifact, Artifact]) -> None:
    found = graphopt.compare(sides[0], sides[0], calibration=IMAGES, runs=5)
    assert found.agreement == 1.0
    assert "equal" in str(found)
    plain = graphopt.compare(sides[0], sides[0], runs=5)
    assert (plain.samples, plain.sqnr_db, plain.agreement) == (0, {}, None)


@pytest.mark.thorough
def test_models_that_take_something_else_are_refused(sides: tuple[Artifact, Artifact]) -> None:
    other = deployed(torch.randn(8, 1, 8, 8))
    with pytest.raises(InputError, match="take different inputs"):
        graphopt.compare(sides[0], other)


def test_the_command_prints_and_keeps_it(sides: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    for artifact, name in zip(sides, ("int8", "float"), strict=True):
        artifact.save(tmp_path / name)
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    folders = [str(tmp_path / "int8"), str(tmp_path / "float")]
    data = ["--calibration", str(tmp_path / "images.npy"), "--json", str(tmp_path / "found.json")]
    result = CliRunner().invoke(app, ["compare", *folders, *data])
    assert result.exit_code == 0, result.output
    assert "same prediction" in result.output
    assert json.loads((tmp_path / "found.json").read_text())["samples"] == 24

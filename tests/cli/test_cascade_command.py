"""`graphopt cascade` puts deployed models one behind the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import staging
import torch
from commands import run

import graphopt
from graphopt import StagedArtifact


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    for name, large in (("small", False), ("large", True)):
        staging.optimized(large).artifact.save(tmp_path / name)
    x = staging.images(60, seed=3)
    np.savez(tmp_path / "held_out.npz", x=x.numpy(), labels=staging.classes(x).numpy())
    return tmp_path


def test_two_models_become_one_artifact_with_a_report(deployed: Path) -> None:
    done = run(
        "cascade", deployed / "small", deployed / "large", "--samples", deployed / "held_out.npz", "--max-drop", "50",
        "--confidence", "margin", "--out", deployed / "both", "--report", deployed / "both.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "measured on 30 samples" in done.output.replace("\n", " ")
    assert "<svg" in (deployed / "both.html").read_text()
    artifact = graphopt.load(deployed / "both")
    assert isinstance(artifact, StagedArtifact)
    assert artifact.policy.confidence == "margin"
    assert artifact(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert "stage 1  Large, onnxruntime" in run("show", deployed / "both").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of max_drop"),
        (["--budget", "1e-9"], "no thresholds keep to 1e-09 milliseconds"),
        (["--max-drop", "1", "--confidence", "soft"], "unknown confidence 'soft'"),
        (["--max-drop", "1", "--report", "report.pdf"], "what to write into report.pdf"),
    ],
)
def test_what_does_not_fit_is_one_line(deployed: Path, arguments: list[str], message: str) -> None:
    done = run(
        "cascade", deployed / "small", deployed / "large", "--samples", deployed / "held_out.npz", "--out", deployed / "both",
        *arguments,
    )  # fmt: skip
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (deployed / "both").exists()


def test_a_file_that_holds_no_samples_is_named(deployed: Path) -> None:
    np.savez(deployed / "labels.npz", y=np.zeros(3, np.int64))
    (deployed / "broken.npz").write_bytes(b"nothing")
    for name, message in (("labels", "holds no inputs beside the classes"), ("broken", "cannot read samples from")):
        done = run(
            "cascade", deployed / "small", deployed / "large", "--samples", deployed / f"{name}.npz", "--max-drop", "1",
            "--out", deployed / "both",
        )  # fmt: skip
        assert done.exit_code == 1
        assert message in done.stderr

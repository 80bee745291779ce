"""Audits of files that others made: reports, the command, and what is no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from file_auditing import IMAGE, example, float_between
from qdq import File, residual
from typer.testing import CliRunner

import graphopt
from graphopt.cli.main import app
from graphopt.evaluation.float_regions import FloatRegion
from graphopt.utils.errors import ArtifactError, InputError

# ---- Reports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    f = File("batch", 4, 8, 8)
    return f.save(tmp_path / "model.onnx", residual(f, f.on_grid("x")))


def test_the_report_survives_json(planted: Path, tmp_path: Path) -> None:
    found = graphopt.audit(planted, "x86")
    found.save(tmp_path / "audit.json")
    data = json.loads((tmp_path / "audit.json").read_text())
    assert [FloatRegion.from_dict(region) for region in data["float_regions"]] == found.float_regions
    assert data["integer_share"] == found.share
    assert data["shapes"] == {"x": list(IMAGE)}


def test_a_cure_is_timed_on_the_machine_at_hand(planted: Path, tmp_path: Path) -> None:
    done = graphopt.audit(planted, "host").fix(tmp_path / "fixed.onnx")
    if done.before.target.runtime.architecture == "x86_64":
        assert done.milliseconds is not None
        assert min(done.milliseconds) > 0
        assert "times faster" in str(done)
    assert json.loads(json.dumps(done.to_dict()))["after"]["integer_share"] == 1.0


def test_the_command_exits_with_1_while_islands_are_left(planted: Path, tmp_path: Path) -> None:
    run = CliRunner()
    first = run.invoke(app, ["audit", str(planted), "--target", "x86"])
    assert first.exit_code == 1
    assert "signed-values" in first.output
    out, figures = tmp_path / "fixed.onnx", tmp_path / "figures.json"
    options = ["--target", "x86", "--fix", str(out), "--json", str(figures), "--no-measure"]
    second = run.invoke(app, ["audit", str(planted), *options])
    assert second.exit_code == 0, second.output
    assert json.loads(figures.read_text())["after"]["float_regions"] == []
    assert run.invoke(app, ["audit", str(out), "--target", "x86", "--input-shape", "2,4,8,8"]).exit_code == 0


def test_the_command_measures_ranges_on_calibration_data(tmp_path: Path) -> None:
    f = File("batch", 4, 8, 8, dtype=np.uint8)
    path = f.save(tmp_path / "model.onnx", float_between(f, f.on_grid("x")))
    np.savez(tmp_path / "typical.npz", x=example(40, 4, 8, 8))
    options = ["--target", "x86", "--fix", str(tmp_path / "fixed.onnx"), "--no-measure"]
    without = CliRunner().invoke(app, ["audit", str(path), *options])
    assert without.exit_code == 1
    assert "--calibration" in without.output
    done = CliRunner().invoke(app, ["audit", str(path), *options, "--calibration", str(tmp_path / "typical.npz")])
    assert done.exit_code == 0, done.output
    bad = CliRunner().invoke(app, ["audit", str(path), *options, "--calibration", str(tmp_path / "nothing.npz")])
    assert bad.exit_code == 1
    assert "there is no file" in bad.stderr


# ---- Bad input ------------------------------------------------------------------------------------------------------


def test_the_audited_file_is_overwritten_only_where_asked(planted: Path) -> None:
    before, found = planted.read_bytes(), graphopt.audit(planted, "x86")
    with pytest.raises(InputError, match="the audited file itself"):
        found.fix(planted)
    assert planted.read_bytes() == before
    assert found.fix(planted, overwrite=True, measure=False).after.share == 1.0
    assert planted.read_bytes() != before
    assert sorted(p.name for p in planted.parent.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p.unlink(), InputError, "no ONNX model"),
        (lambda p: p.write_bytes(b"not a model"), InputError, "no ONNX model"),
        (lambda p: p.write_bytes(b""), (InputError, ArtifactError), "model.onnx"),
    ],
)
def test_what_is_no_model_is_an_error(planted: Path, change: Any, error: Any, message: str) -> None:
    change(planted)
    with pytest.raises(error, match=message):
        graphopt.audit(planted, "x86")


def test_missing_weights_are_an_error_that_names_them(planted: Path) -> None:
    model = onnx.load(planted)
    onnx.save(model, planted, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (planted.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin"):
        graphopt.audit(planted, "x86")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "x68"}, "did you mean"),
        ({"target": "tvm-x86"}, "runs no ONNX files"),
        ({"shapes": [(1, 3, 8, 8)]}, "does not fit"),
        ({"shapes": [(1, 4, 8, 8), (1,)]}, "2 shapes"),
    ],
)
def test_what_does_not_fit_is_an_error(planted: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graphopt.audit(planted, **{"target": "x86", **options})


def test_free_sizes_have_to_be_given(tmp_path: Path) -> None:
    f = File(1, 4, "height", "width", dtype=np.uint8)
    path = f.save(tmp_path / "model.onnx", f.on_grid(f.conv(f.on_grid("x"))))
    with pytest.raises(InputError, match=r"height, width.*--input-shape"):
        graphopt.audit(path, "x86")
    assert graphopt.audit(path, "x86", shapes=[IMAGE]).total_macs == 64 * 4 * 4 * 9

"""`optimize`: what is refused, and what an interruption leaves behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import conv, images
from optimizing import quick, result
from torch import Tensor, nn

import graphopt
from graphopt.compiler import stages
from graphopt.utils.errors import CaptureError, InputError, NonFiniteError, PassError

# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "amr"}, "unknown target 'amr'; did you mean 'arm'"),
        ({"calibration": []}, "calibration data is empty"),
        ({"calibration": [torch.randn(2, 5)]}, "calibration data"),
        ({"estimator": "median"}, "unknown range estimator 'median'"),
        ({"formats": {"nothing*": None}}, "pattern 'nothing\\*' matches no layer"),
        ({"evaluate": lambda model: "good"}, "evaluate must return a number"),
        ({"evaluate": lambda model: float("nan")}, "evaluate returned NaN for the original model"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quick(nn.Sequential(conv(3, 4), nn.ReLU()).eval(), **options)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"training mode.*call model.eval\(\) first"):
        quick(nn.Sequential(conv(3, 4), nn.Dropout()))


def test_inputs_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises((InputError, CaptureError)):
        quick(nn.Sequential(conv(3, 4)).eval(), torch.randn(2, 5, 8, 8))


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to quantize"):
        quick(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval())


def test_a_model_with_nothing_to_quantize_is_deployed_in_float_without_passes() -> None:
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).eval()
    result = graphopt.optimize(model, images(2), target="x86", passes=[], measure=False)
    assert torch.equal(result.artifact(images(2)), model(images(2)))


def test_a_weight_that_is_not_a_number_is_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises((NonFiniteError, PassError, CaptureError), match=r"2\.weight"):
        quick(model)


@pytest.mark.thorough
def test_answers_to_inputs_that_do_not_fit_are_refused() -> None:
    (artifact, *_), *_ = result()
    with pytest.raises(InputError, match="inputs_0"):
        artifact(torch.randn(2, 3, 9, 9))
    with pytest.raises(InputError, match="the model takes"):
        artifact()


# ---- Interruptions --------------------------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stream() -> Iterator[Tensor]:
        yield images(4)
        raise KeyboardInterrupt

    model = nn.Sequential(conv(3, 4), nn.ReLU()).eval()
    with pytest.raises(KeyboardInterrupt):
        quick(model, calibration=stream)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_an_error_while_measuring_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick(nn.Sequential(conv(3, 4), nn.ReLU()).eval())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(InputError, match="permission denied"):
            artifact.save(tmp_path / "out")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.thorough
def test_a_file_where_the_folder_should_go_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError):
        artifact.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (artifact, *_), *_ = result()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        artifact.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_to_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        graphopt.load(tmp_path / "nothing")


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [iter, lambda batches: (batch for batch in batches)], ids=["iterator", "generator"])
def test_a_one_shot_iterator_calibrates_without_what_needs_a_second_pass(stream: Any) -> None:
    batches = stream([torch.randn(4, 3, 8, 8) for _ in range(3)])
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    report = graphopt.optimize(model, torch.randn(1, 3, 8, 8), target="host", calibration=batches, measure=False).report
    assert "CorrectBias" not in [step.name for step in report.steps]
    assert report.agreement is None
    assert "iterator" in report.missing["agreement"]

"""`graphopt optimize`: what the command line hands over."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import MODELS, run

from graphopt.data.loaders import Named
from graphopt.targets import find


def test_optimize_hands_everything_over(optimize_call: dict[str, Any], tmp_path: Path) -> None:
    np.save("x.npy", np.zeros((4, 3, 8, 8), "float32"))
    result = run(
        "optimize", "cli_models:net", "--target", "x86", "--input-shape", "2,3,8,8", "--calibration", "x.npy",
        "--evaluate", "cli_models:accuracy", "--estimator", "minmax", "--threads", "2", "--no-measure",
        "--mean", "0.5", "--samples", "7", "--out", "out", "--report", "report.json", "--dump", "steps",
        "--storage", "huffman",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert not optimize_call["model"].training
    assert [tuple(t.shape) for t in optimize_call["example"]] == [(2, 3, 8, 8)]
    assert optimize_call["target"].name == "x86"
    assert isinstance(optimize_call["calibration"], Named)
    assert (optimize_call["calibration"].limit, optimize_call["preprocessing"].mean) == (7, (0.5,))
    assert optimize_call["evaluate"](None) == 0.5
    assert (optimize_call["estimator"], optimize_call["threads"], optimize_call["measure"]) == ("minmax", 2, False)
    assert (optimize_call["dump"], optimize_call["storage"]) == (Path("steps"), "huffman")
    assert "Net for x86" in result.stdout
    assert f"saved to {tmp_path / 'out'}" in result.stdout
    assert json.loads(Path("report.json").read_text())["model"] == "Net"


def test_cores_and_kept_results(optimize_call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", limits.append)
    assert run("optimize", "cli_models:net", "--cache", "kept", "--jobs", "1").exit_code == 0
    assert (optimize_call["cache"], limits) == (Path("kept"), [1])
    assert run("optimize", "cli_models:net", "--jobs", "0").exit_code == 2
    assert limits == [1]


def test_few_bits_are_asked_for_by_options(optimize_call: dict[str, Any]) -> None:
    options = {
        "--rounding": "gptq",
        "--average-bits": 4.0,
        "--weight-only": 8,
        "--checkpoint": Path("kept"),
        "--max-drop": 0.5,
    }
    assert run("optimize", "cli_models:net", *(str(part) for pair in options.items() for part in pair)).exit_code == 0
    assert {name: optimize_call[name[2:].replace("-", "_")] for name in options} == options


def test_what_is_done_to_images_is_a_file_and_options_over_it(optimize_call: dict[str, Any]) -> None:
    timm = {
        "input_size": [3, 96, 96],
        "crop_pct": 0.75,
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "interpolation": "bilinear",
    }
    Path("config.json").write_text(json.dumps({"pretrained_cfg": timm}))
    Path("names.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    Path("names.txt").write_text("cat\ndog\n")
    options = ("--preprocessing", "config.json", "--std", "0.3", "--color", "BGR", "--resize", "100")
    assert run("optimize", "cli_models:net", *options, "--class-labels", "names.txt").exit_code == 0
    found = optimize_call["preprocessing"]
    assert (found.crop, found.mean, found.std) == ((96, 96), (0.1, 0.1, 0.1), (0.3,))
    assert (found.resize, found.color, found.interpolation) == ((100, 100), "BGR", "bilinear")
    assert optimize_call["class_labels"] == ["cat", "dog"]
    assert run("optimize", "cli_models:net", "--class-labels", "names.json").exit_code == 0
    assert optimize_call["class_labels"] == {"0": "cat", "1": "dog"}
    assert optimize_call["preprocessing"] is None


def test_timings_are_printed_where_they_are_asked_for(optimize_call: dict[str, Any]) -> None:
    timed = run("optimize", "cli_models:net", "--timings")
    assert timed.exit_code == 0, timed.output
    assert ["stage", "part", "seconds"] in [line.split() for line in timed.stdout.splitlines()]
    assert "seconds" not in run("optimize", "cli_models:net").stdout


@pytest.mark.thorough
def test_analyze_reads_photos_as_optimize_did(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    Path("photos").mkdir()
    image.fromarray(np.zeros((9, 9, 3), "uint8")).save("photos/a.png")
    cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": [0.1] * 3, "std": [0.2] * 3}
    Path("cli_models.py").write_text(
        f"{MODELS}\ndef timm():\n    found = net()\n    found.pretrained_cfg = {cfg}\n    return found\n"
    )
    given: list[Any] = []
    shown = SimpleNamespace(print=lambda **_: None)
    monkeypatch.setattr("graphopt.evaluation.sensitivity.analyze", lambda graph, source: given.append(source) or shown)
    options = ("--target", "x86-avx2", "--calibration", "photos", "--input-shape", "1,3,8,8")
    for more, mean in (((), (0.1, 0.1, 0.1)), (("--mean", "0.7"), (0.7,))):
        result = run("analyze", "cli_models:timm", *options, *more)
        assert result.exit_code == 0, result.output
        assert given[-1].preprocessing.mean == mean


def test_the_target_is_this_machine_unless_another_is_named(optimize_call: dict[str, Any]) -> None:
    said = run("optimize", "cli_models:net").stdout
    assert optimize_call["target"] == find("host")
    assert "no --target was given: this is for the machine it ran on" in said
    assert "no --target" not in run("optimize", "cli_models:net", "--target", "host").stdout
    assert optimize_call["target"] == find("host")
    assert run("optimize", "cli_models:net", "--quiet").stdout == ""


def test_tuning_is_asked_for_by_options(optimize_call: dict[str, Any]) -> None:
    options = ("--target", "tvm-x86", "--tune", "60s", "--tune-database", "tiles.jsonl")
    assert run("optimize", "cli_models:net", *options).exit_code == 0
    assert (optimize_call["tune"], optimize_call["tune_database"]) == ("60s", Path("tiles.jsonl"))


def test_a_finished_module_and_several_typed_inputs(optimize_call: dict[str, Any]) -> None:
    result = run("optimize", "cli_models:made", "--input-shape", "1x5:int64", "--input-shape", "4:float64")
    assert result.exit_code == 0, result.output
    ids, value = optimize_call["example"]
    assert (ids.dtype, ids.shape, value.dtype) == (torch.int64, (1, 5), torch.float64)
    assert optimize_call["target"].name == "host"
    assert optimize_call["calibration"] is None


def test_training_is_asked_for_by_options(optimize_call: dict[str, Any]) -> None:
    how = ["--train", "photos.npz", "--epochs", 2, "--batch-size", 16, "--rate", 0.002, "--quantizers", "ste"]
    result = run("optimize", "cli_models:net", "--input-shape", "1,3,8,8", *how, "--training-checkpoint", "kept")
    assert result.exit_code == 0, result.output
    names = ("train", "epochs", "batch_size", "rate", "quantizers", "training_checkpoint")
    assert [optimize_call[name] for name in names] == ["photos.npz", 2, 16, 0.002, "ste", Path("kept")]


def test_a_budget_is_asked_for_by_amounts(optimize_call: dict[str, Any]) -> None:
    assert run("optimize", "cli_models:net", "--budget", "latency=0.4", "--budget", "bytes=200_000").exit_code == 0
    assert optimize_call["budget"] == {"latency": 0.4, "bytes": 200_000.0}
    result = run("optimize", "cli_models:net", "--budget", "fast")
    assert result.exit_code == 1
    assert "--budget 'fast' is not of the form latency=0.4" in result.stderr

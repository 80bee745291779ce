"""JSON Schemas of what is written: they come with the package, follow from the code, and hold for reports and manifests."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import randomised
from test_report import FULL
from torch import nn

import graphopt
from graphopt.artifacts import schemas
from graphopt.artifacts.report import Report

jsonschema = pytest.importorskip("jsonschema")


def mistakes(schema: dict[str, Any], data: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(data)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in found]


@pytest.mark.parametrize(("name", "made"), [("report", schemas.report), ("manifest", schemas.manifest)])
def test_the_files_are_what_the_code_writes(name: Any, made: Any) -> None:
    shipped = json.loads((resources.files("graphopt.artifacts") / f"{name}.schema.json").read_text())
    assert shipped == made(), "run: python -m graphopt.artifacts.schemas"
    assert schemas.read(name) == shipped
    jsonschema.Draft202012Validator.check_schema(shipped)


@pytest.mark.parametrize(
    "report", [FULL, Report("m", "t"), Report("m", "t", sqnr_db=float("inf"), agreement=float("nan"))]
)
def test_reports_fit(report: Report) -> None:
    assert mistakes(schemas.report(), report.to_dict()) == []


def test_what_optimize_writes_fits(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 2, 3))).eval()
    x = torch.randn(4, 3, 8, 8)
    result = graphopt.optimize(model, x, target="x86-avx2", calibration=x, class_labels=None)
    result.artifact.save(tmp_path / "deployed")
    manifest = json.loads((tmp_path / "deployed/manifest.json").read_text())
    assert mistakes(schemas.manifest(), manifest) == []
    result.report.include(graphopt.analyze(result.graph, x), result.artifact.profile(x, runs=2)).save(
        tmp_path / "r.json"
    )
    assert mistakes(schemas.report(), json.loads((tmp_path / "r.json").read_text())) == []


def test_a_manifest_without_a_report_fits(tmp_path: Path) -> None:
    data = {"$defs": {}, **schemas.manifest()}
    assert mistakes({**data["properties"]["report"], "$defs": data["$defs"]}, {}) == []
    assert mistakes({**data["properties"]["report"], "$defs": data["$defs"]}, {"model": "m"}) != []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"accuracy_before": "high"}, "accuracy_before"), ({"model": 3}, "model"), ({"invention": 1}, ""),
        ({"steps": [{"name": "Fold"}]}, "steps/0"), ({"network": [{"name": "x", "reads": ["y"]}]}, "network/0"),
    ],
)  # fmt: skip
def test_what_is_no_report_does_not_fit(change: dict[str, Any], place: str) -> None:
    found = mistakes(schemas.report(), {**FULL.to_dict(), **change})
    assert found
    assert any(each.startswith(place) for each in found)

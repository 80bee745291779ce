"""The page of a report: what was gained and lost, the network and its layers, and nothing that names could break."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import BAD, fetches, parsed
from rewriting import randomised
from test_report import FULL
from torch import Tensor, nn

import graphopt
from graphopt.artifacts.network import Call, Distribution
from graphopt.artifacts.report import Attempt, Report
from graphopt.artifacts.report_page import summary
from graphopt.evaluation.network import network
from graphopt.ir.graph import Graph
from graphopt.utils.errors import InputError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.gelu, self.head = nn.GELU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.gelu(torch.relu(self.conv(x)) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def case() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    images = torch.rand(8, 3, 8, 8)
    model = randomised(Net()).eval()
    return graphopt.optimize(model, images[:1], target="x86-avx2", calibration=images, measure=False), images


@pytest.fixture(scope="module")
def whole(case: tuple[Any, Tensor]) -> Report:
    result, images = case
    found = result.artifact.profile(images[:1], runs=3), graphopt.analyze(result.graph, images)
    return Report.from_dict(result.report.to_dict()).include(*found)


def test_a_report_knows_every_call_of_its_network(case: tuple[Any, Tensor]) -> None:
    calls = {call.name: call for call in case[0].report.network}
    assert [*calls] == ["x", "stem", "conv", "add", "gelu", "adaptive_avg_pool2d_default", "reshape", "head"]
    assert calls["stem"].operator == "conv + relu"
    assert calls["conv"].bits == "7 / 8"
    assert (calls["conv"].shape, calls["conv"].macs) == ((None, 8, 8, 8), 8 * 8 * 8 * 8 * 9)
    assert {name for name, call in calls.items() if call.arithmetic == "integer"} == {"stem", "conv", "head"}
    assert (calls["gelu"].arithmetic, calls["gelu"].reason) == ("float", "GELU has no integer kernel")
    numbers = {name: number for number, name in enumerate(calls)}
    assert set(calls["add"].reads) == {numbers["conv"], numbers["stem"]}
    assert sum(call.macs for call in calls.values()) == case[0].report.steps[-1].macs


def test_a_float_graph_has_no_bits(case: tuple[Any, Tensor]) -> None:
    found = network(Graph.capture(Net().eval(), case[1][:1]))
    assert {call.bits for call in found} == {""}
    assert {call.arithmetic for call in found if call.macs} == {"float"}


def test_time_and_damage_come_with_what_measured_them(case: tuple[Any, Tensor], whole: Report) -> None:
    assert all(call.milliseconds is None and call.sqnr_db is None for call in case[0].report.network)
    calls = {call.name: call for call in whole.network}
    assert calls["add"].reason == "the operators around it are float"
    for name in ("stem", "conv", "head", "add", "gelu"):
        assert calls[name].milliseconds > 0, name
        assert (calls[name].sqnr_db is not None) == bool(calls[name].bits), name
    assert calls["conv"].sqnr_db > 20
    names = {found.name for found in whole.distributions}
    assert {"conv", "conv.weight", "stem.weight"} <= names
    weight = next(found for found in whole.distributions if found.name == "conv.weight")
    assert sum(weight.counts) == 8 * 8 * 9


def test_it_is_kept_whole(whole: Report) -> None:
    data = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert Report.from_dict(data) == whole
    quantize = next(step for step in data["steps"] if step["name"] == "Quantize")
    assert quantize["options"]["target"] == "x86-avx2"
    assert quantize["options"]["formats"] == {}
    assert data["options"]["measure"] is False
    assert data["options"]["threads"] == 1
    assert data["versions"]["graphopt"] == graphopt.__version__
    assert isinstance(data["seed"], int)


@pytest.mark.parametrize(
    "change",
    [{"reads": [7]}, {"reads": [-1]}, {"reads": ["x"]}, {"name": 3}, {"arithmetic": "magic"}, {"invention": 1}],
)
def test_a_network_that_cannot_be_is_refused(whole: Report, change: dict[str, Any]) -> None:
    data = whole.to_dict()
    data["network"] = [*data["network"][:2], {**data["network"][2], **change}]
    with pytest.raises(InputError):
        Report.from_dict(data)


def test_the_page_has_everything(whole: Report, tmp_path: Path) -> None:
    whole.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    shown = parsed(re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL))
    for step in whole.steps:
        assert step.name in shown
        assert all(what in shown for _, what in step.changes)
    for call in whole.network:
        assert call.name in shown
    for part in (
        "Layers (6)",
        "The network",
        "Values and their grids",
        "Seconds by stage",
        "GELU has no integer kernel",
    ):
        assert part in shown
    assert fetches(text) == []
    assert text.count("<script>") == 1
    assert text.count('data-colour="') == 4  # arithmetic, damage, time, work
    assert "report.include" not in shown
    assert text.index("conv.weight") > text.index("The network")


def test_what_was_not_measured_is_said_and_how_to_get_it(case: tuple[Any, Tensor]) -> None:
    report = case[0].report
    text = parsed(re.sub(r"<script>.*</script>", "", report.page(), flags=re.DOTALL))
    assert "no evaluate function was given" in text
    assert "report.include(result.artifact.profile(images), graphopt.analyze(result.graph, images))" in text
    assert "--profile --analyze" in text
    assert "ms: of its kernels" not in text


def test_names_cannot_break_the_page() -> None:
    report = Report(BAD, BAD, notes=[BAD], warnings=[BAD], attempts=[Attempt(BAD, 0.5, 1.0, True, BAD, 9, 1.0)] * 2)
    report.network = [Call(BAD, "input", BAD), Call(BAD, BAD, BAD, (0,), (1,), 8, 8, "float", BAD, 5, 1.0, 2.0)]
    report.distributions = [Distribution(BAD, "weight", 8, -1.0, 1.0, -1.0, 0.5, [1.0] * 4, 0.0, 1, 4, 9.0)]
    report.options = {BAD: BAD}
    text = report.page()
    assert text.count("<script") == 1
    assert parsed(re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)).count(BAD) > 10


def test_the_page_begins_with_warnings_and_one_sentence() -> None:
    text = FULL.page()
    assert text.index("no calibration data") < text.index("3.43x faster, 4.00x smaller; accuracy 0.9400 → 0.9380")
    assert summary(FULL) == "3.43x faster, 4.00x smaller; accuracy 0.9400 → 0.9380."
    assert summary(Report("m", "t")) == "Nothing was measured of what it gained; what it cost was not measured."
    assert summary(Report("m", "t", agreement=0.99)).endswith("the same prediction as float on 99.0% of the samples.")
    assert "<script" not in text, "nothing moves where there is no network"


def test_attempts_are_points_where_there_are_several() -> None:
    tries = [
        Attempt("nearest", 0.5, 1, False, "", 100, 2.0),
        Attempt("failed", None, 1, False, "no"),
        Attempt("gptq", 0.9, 1, True, "", 90),
    ]
    both = Report("m", "t", attempts=tries, accuracy_before=0.92)
    assert "milliseconds of a call" not in both.page(), "one point is no comparison"
    text = Report(
        "m", "t", attempts=[*tries[:2], Attempt("gptq", 0.9, 1, True, "", 90, 1.5)], accuracy_before=0.92
    ).page()
    assert "milliseconds of a call" in text
    assert text.count("<circle") == 2
    assert ">3</text>" in text, "numbered as in the table, which has those that failed, too"

"""Artifacts of stages: put together, fitted, saved, simulated, and run without graphopt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import staging
import torch
from torch import Tensor

import graphopt
from graphopt import Cascade, StagedArtifact
from graphopt.artifacts import registry
from graphopt.cascades.answers import answers
from graphopt.cascades.cascade import shrunk
from graphopt.policies import Policy
from graphopt.targets import machine_here
from graphopt.utils.errors import ArtifactError, InputError

IMAGES = staging.images(60, seed=3)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return staging.classes(IMAGES)


@pytest.fixture
def cascade() -> Cascade:
    return Cascade([staging.optimized(), staging.optimized(large=True)])


@pytest.fixture
def exits() -> Cascade:
    return Cascade.of_exits(staging.exits().graph, target="x86")


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage takes five times as long as the first, whatever else the machine does."""
    monkeypatch.setattr(StagedArtifact, "measured", lambda self, arrays, runs=0: [1.0, 5.0])


def put(cascade: Cascade, *thresholds: float | None) -> StagedArtifact:
    cascade.artifact.policy = Policy(thresholds)
    return cascade.artifact


def test_each_sample_is_answered_by_the_stage_that_is_sure(cascade: Cascade) -> None:
    small, large = (stage(IMAGES) for stage in cascade.artifact.stages)
    sure = small.softmax(1).amax(1)
    threshold = float(sure.sort().values[29:31].mean())
    artifact = put(cascade, threshold)
    path = artifact.path(IMAGES)
    assert torch.equal(path, (sure < threshold).long())
    assert torch.equal(artifact(IMAGES), torch.where(path[:, None] == 0, small, large))
    assert artifact.rates(IMAGES) == [0.5, 0.5]


def test_exits_answer_what_the_whole_network_answers_there(exits: Cascade) -> None:
    whole = staging.exits().artifact(IMAGES)
    first = whole[0].softmax(1).amax(1)
    artifact = put(exits, float(first.median()), float(whole[1].softmax(1).amax(1).median()))
    path = artifact.path(IMAGES)
    assert sorted(set(path.tolist())) == [0, 1, 2]
    assert torch.equal(artifact(IMAGES), torch.stack([whole[stage][i] for i, stage in enumerate(path.tolist())]))


@pytest.mark.parametrize("kind", ["cascade", "exits"])
def test_the_simulation_takes_the_same_path_to_the_same_bits(kind: str, request: pytest.FixtureRequest) -> None:
    found: Cascade = request.getfixturevalue(kind)
    answers = found.artifact.stages[0](IMAGES)
    logits = answers[0] if isinstance(answers, (list, tuple)) else answers
    artifact = put(found, *[float(logits.softmax(1).amax(1).median())] * (len(found.artifact.stages) - 1))
    simulation = found.simulate(machine=machine_here())
    assert torch.equal(simulation(IMAGES), artifact(IMAGES))
    assert torch.equal(simulation.path(IMAGES), artifact.path(IMAGES))


def test_a_stage_that_came_as_an_artifact_cannot_be_simulated() -> None:
    cascade = Cascade([staging.optimized().artifact, staging.optimized(large=True)])
    with pytest.raises(InputError, match="stage 0 was given as an artifact, whose graph is not known"):
        cascade.simulate()


@pytest.mark.parametrize("kind", ["cascade", "exits"])
@pytest.mark.parametrize("coding", [None, "entropy"])
def test_a_saved_artifact_answers_the_same(
    kind: str, coding: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Cascade = request.getfixturevalue(kind)
    artifact = put(found, *[0.6] * (len(found.artifact.stages) - 1))
    if coding:
        artifact.store(coding)
    loaded = graphopt.load(artifact.save(tmp_path / "deployed"))
    assert isinstance(loaded, StagedArtifact)
    assert loaded.policy == artifact.policy
    assert torch.equal(loaded(IMAGES), artifact(IMAGES))
    assert torch.equal(loaded.path(IMAGES), artifact.path(IMAGES))
    assert [p.name for p in (tmp_path / "deployed").rglob("manifest.json")] == ["manifest.json"]


def test_equal_files_of_two_stages_lie_there_once(tmp_path: Path) -> None:
    """The same network twice, as one would have it at two resolutions."""
    result = staging.optimized()
    artifact = put(Cascade([result, result]), 0.6)
    assert artifact.size_bytes == result.artifact.size_bytes
    loaded = graphopt.load(artifact.save(tmp_path / "deployed"))
    assert torch.equal(loaded(IMAGES), result.artifact(IMAGES))


WEIGHTS = ((1.0, 2.0, -0.5, 0.3, -1.0), (0.5, 1.5, 0.2, 2.0, -1.2))


@pytest.mark.parametrize(
    ("confidence", "thresholds"), [("softmax", (0.55, 0.5)), ("agreement", (1.0, 0.5)), ("learned", (0.6, 0.55))]
)
def test_the_program_without_graphopt_answers_the_same(
    exits: Cascade, tmp_path: Path, confidence: str, thresholds: tuple[float, ...]
) -> None:
    artifact, before = put(exits, *thresholds), exits.artifact.policy
    artifact.policy = Policy(thresholds, confidence, weights=WEIGHTS if confidence == "learned" else ())  # type: ignore[arg-type]
    saved = artifact.save(tmp_path / "deployed")
    shown = "\nprint(json.dumps(outputs[0].tolist()))\n"
    (tmp_path / "use.py").write_text(artifact.usage(saved) + shown)
    path = artifact.path(IMAGES)
    for stage in sorted(set(path.tolist())):
        row = int((path == stage).nonzero()[0])
        np.save(tmp_path / "x.npy", IMAGES[row : row + 1].numpy())
        done = subprocess.run(
            [sys.executable, "use.py", "x.npy"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert f"answered by stage {stage}" in done.stdout
        assert json.loads(done.stdout.splitlines()[-1]) == artifact(IMAGES[row : row + 1]).tolist()
    assert confidence == "softmax" or len(path.unique()) > 1
    artifact.policy = before


def test_stages_of_two_runtimes_go_together(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    artifact = put(Cascade([staging.optimized(False, "tvm-x86"), staging.optimized(large=True)]), 0.6)
    assert [stage.manifest.runtime for stage in artifact.stages] == ["tvm", "onnxruntime"]
    loaded = graphopt.load(artifact.save(tmp_path / "deployed"))
    assert torch.equal(loaded(IMAGES), artifact(IMAGES))
    assert 0 < artifact.rates(IMAGES)[0] < 1


def test_every_stage_obeys_the_rules_of_the_target(cascade: Cascade, tmp_path: Path) -> None:
    saved = put(cascade, 0.5).save(tmp_path / "deployed")
    assert graphopt.check(saved, "x86") == []
    rules = {violation.rule for violation in graphopt.check(cascade.artifact, "hexagon")}
    assert rules == {v.rule for n in (False, True) for v in graphopt.check(staging.optimized(n).artifact, "hexagon")}


def test_what_is_shown_of_a_saved_artifact(cascade: Cascade) -> None:
    from graphopt.artifacts.staged import stage_lines

    artifact = put(cascade, 0.5)
    artifact.manifest.options["stages"]["policy"] = artifact.policy.to_dict()
    assert stage_lines(artifact.manifest) == [
        "stage 0  Cheap, onnxruntime, answers from softmax 0.5000 on",
        "stage 1  Large, onnxruntime",
    ]
    assert stage_lines(staging.optimized().artifact.manifest) == []
    with pytest.raises(InputError, match="kernels are those of a stage"):
        artifact.profile(IMAGES[:1])


# ---- Fitting --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known_times")
@pytest.mark.parametrize("confidence", ["softmax", "entropy", "margin", "learned"])
def test_thresholds_keep_the_drop_that_was_allowed(confidence: Any, labels: Tensor) -> None:
    cascade = Cascade([staging.optimized(), staging.optimized(large=True)], confidence=confidence)
    cascade.fit(IMAGES, labels, max_drop=3.0, calibrate=False)
    accuracy = 100 * float((cascade(IMAGES).argmax(1) == labels).double().mean())
    best = float((cascade.artifact.stages[-1](IMAGES).argmax(1) == labels).double().mean())
    assert accuracy >= 100 * best - 3.0 - 1e-9
    assert cascade.rates(IMAGES)[0] > 0  # and someone leaves early
    chosen = [c for c in cascade.front if c.thresholds == cascade.artifact.policy.thresholds]
    assert cascade.rates(IMAGES) == pytest.approx(list(chosen[0].rates))


@pytest.mark.usefixtures("known_times")
def test_without_labels_the_last_stage_is_right(cascade: Cascade) -> None:
    cascade.fit(IMAGES, max_drop=10.0)
    same = cascade(IMAGES).argmax(1) == cascade.artifact.stages[-1](IMAGES).argmax(1)
    assert float(same.double().mean()) >= 0.9
    assert cascade.rates(IMAGES)[0] > 0
    assert cascade.artifact.policy.temperatures[-1] == 1.0


def test_a_budget_is_kept_to_by_measured_times(cascade: Cascade, labels: Tensor) -> None:
    cascade.fit(IMAGES, labels, budget=1e6)
    assert cascade.artifact.policy.thresholds == cascade.front[-1].thresholds
    with pytest.raises(InputError, match=r"no thresholds keep to 1e-06 milliseconds; the cheapest take"):
        cascade.fit(IMAGES, labels, budget=1e-6)


def test_few_labels_are_mixed_with_calibrated_probabilities(cascade: Cascade, labels: Tensor) -> None:
    known = answers(cascade.artifact, IMAGES, labels)
    policy = Policy((0.5,), temperatures=(2.0, 3.0))
    for stage, temperature in enumerate(policy.temperatures):
        logits = cascade.artifact.stages[stage](IMAGES).double()
        right = (logits.argmax(1) == labels).double()
        sure = (logits / temperature).softmax(1).amax(1)
        expected = (60 * right + 250 * sure) / 310
        assert shrunk(known, policy)[stage] == pytest.approx(expected.numpy())
    assert shrunk(known, Policy((0.5,))) is known.score


@pytest.mark.usefixtures("known_times")
def test_the_best_within_a_budget(cascade: Cascade, labels: Tensor) -> None:
    cascade.fit(IMAGES, labels, budget=3.0)
    first, _ = cascade.rates(IMAGES)
    assert 1.0 + 5.0 * (1 - first) <= 3.0
    (chosen,) = [c for c in cascade.front if c.thresholds == cascade.artifact.policy.thresholds]
    assert all(c.score <= chosen.score for c in cascade.front if c.cost <= 3.0)


def test_confidence_of_outputs_that_are_no_classes_is_a_function(labels: Tensor) -> None:
    """As for detectors: a score of one's own, and a function that says when a stage is good enough."""
    wanted = torch.nn.functional.one_hot(labels, 5)

    def sure(outputs: list[Any]) -> Any:
        return 1 / (1 + np.exp(-outputs[0].max(axis=1)))

    def score(outputs: list[Any], targets: Tensor) -> Any:
        return -np.abs(outputs[0].argmax(axis=1) - targets.argmax(1).numpy())

    cascade = Cascade([staging.optimized(), staging.optimized(large=True)], confidence=sure)
    cascade.fit(IMAGES, wanted, max_drop=0.1, score=score)
    best = score([cascade.artifact.stages[-1](IMAGES).numpy()], wanted).mean()
    assert score([cascade(IMAGES).numpy()], wanted).mean() >= best - 0.1 - 1e-9
    assert "score" in str(cascade.evaluate(IMAGES, wanted, score=score, points=2))
    with pytest.raises(InputError, match="a function of your program, which no file holds"):
        cascade.save("nowhere")


@pytest.mark.usefixtures("known_times")
def test_the_report_says_what_was_measured(cascade: Cascade, labels: Tensor, tmp_path: Path) -> None:
    report = cascade.fit(IMAGES, labels, max_drop=3.0).evaluate(IMAGES, labels, points=3)
    assert report.chosen.score == pytest.approx(100 * float((cascade(IMAGES).argmax(1) == labels).double().mean()))
    assert report.plain_score > 80
    assert report.worst_ratio > 1  # the small network comes on top
    assert report.chosen in report.curve
    assert [stage.rate for stage in report.stages] == pytest.approx(cascade.rates(IMAGES))
    assert all(sum(shares) == pytest.approx(1) for shares in report.per_class.values())
    macs = [result.report.steps[-1].macs for result in (staging.optimized(), staging.optimized(large=True))]
    assert report.chosen.macs == pytest.approx(macs[0] + report.stages[1].rate * macs[1])
    assert report.stages[0].ece_after is not None
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "ECE" in page
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 60


# ---- Time -----------------------------------------------------------------------------------------------------------


def test_anytime_answers_one_sample(exits: Cascade) -> None:
    artifact = put(exits, None, None)
    whole = staging.exits().artifact(IMAGES[:1])
    assert torch.equal(artifact.anytime(IMAGES[:1], budget_ms=1e-6), whole[0])
    assert torch.equal(artifact.anytime(IMAGES[:1], budget_ms=1e4), whole[2])
    with pytest.raises(InputError, match="anytime answers one sample within its time, got a batch of 2"):
        artifact.anytime(IMAGES[:2], budget_ms=1.0)


def test_a_batch_within_a_budget(exits: Cascade) -> None:
    artifact = put(exits, None, None)
    whole = staging.exits().artifact(IMAGES)
    assert torch.equal(artifact.budgeted(IMAGES, budget_ms=1e-6), whole[0])
    assert torch.equal(artifact.budgeted(IMAGES, budget_ms=1e5), whole[2])


# ---- What does not fit ----------------------------------------------------------------------------------------------


def test_stages_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="1 stage; give two or more"):
        Cascade([staging.optimized()])
    with pytest.raises(InputError, match=r"stages are artifacts, or what graphopt\.optimize returned, got Cheap"):
        Cascade([staging.Cheap(), staging.optimized()])
    wide = graphopt.optimize(
        staging.Cheap(4, classes=7).eval(), IMAGES[:2], target="x86", calibration=IMAGES, measure=False
    )
    with pytest.raises(InputError, match=r"stage 1 answers .*7.*, but stage 0 answers"):
        Cascade([staging.optimized(), wide])
    fixed = graphopt.optimize(
        staging.Cheap(4).eval(), IMAGES[:2], target="x86", calibration=IMAGES[:40], measure=False, dynamic_batch=False
    )
    with pytest.raises(InputError, match=r"stage 1 takes .* let the batch be free, or one"):
        Cascade([staging.optimized(), fixed])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of max_drop"),
        ({"max_drop": 1.0, "budget": 1.0}, "give one of max_drop"),
        ({"max_drop": -1.0}, "max_drop must be at least 0"),
        ({"labels": torch.zeros(3, dtype=torch.long), "max_drop": 1.0}, r"labels are classes by number, \[60\], got int64"),
        ({"labels": torch.full((60,), 9), "max_drop": 1.0}, "labels go from 9 to 9, but there are 5 classes"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_refused(cascade: Cascade, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cascade.fit(IMAGES, **arguments)


def test_a_graph_without_exits_has_no_stages() -> None:
    with pytest.raises(InputError, match="returns one answer, so there is nothing to split"):
        Cascade.of_exits(staging.optimized().graph, target="x86")


def test_a_runtime_that_is_missing_is_named_with_its_stage(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = put(cascade, 0.5).save(tmp_path / "deployed")
    monkeypatch.setattr(registry, "available", lambda runtime: False)
    with pytest.raises(InputError, match="stage 0 of cascade: the runtime 'onnxruntime' is not installed"):
        graphopt.load(saved)


@pytest.mark.parametrize("change", ["policy", "reads", "files", "folder"])
def test_stages_that_were_altered_are_refused(cascade: Cascade, tmp_path: Path, change: str) -> None:
    from graphopt.artifacts.manifest import Manifest

    folder = put(cascade, 0.5).save(tmp_path / "deployed")
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    said = manifest.options["stages"]
    if change == "policy":
        said["policy"]["thresholds"] = [2.0]
    elif change == "reads":
        said["stages"][0]["reads"] = [[1, 1]]
    elif change == "files":
        said["stages"][0]["manifest"]["files"] = {}
    else:
        said["stages"][0]["folder"] = "../elsewhere"
    (folder / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(ArtifactError):
        graphopt.load(folder)


# ---- Stages that run elsewhere --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    pytest.importorskip("tvm")
    torch.manual_seed(0)
    model = staging.trained(staging.Exiting(), 40)
    return graphopt.optimize(
        model, staging.images(1), target="tvm-cortex-m7", calibration=staging.images(), measure=False
    )


def test_stages_for_a_microcontroller_are_fitted_by_simulation(elsewhere: Any, labels: Tensor) -> None:
    cascade = Cascade.of_exits(elsewhere.graph, target="tvm-cortex-m7").fit(IMAGES, labels, max_drop=5.0)
    simulation = cascade.simulate()
    right = float((simulation(IMAGES).argmax(1) == labels).double().mean())
    cascade.artifact.policy = cascade.artifact.policy.at([None, None])
    last = float((cascade.simulate()(IMAGES).argmax(1) == labels).double().mean())
    assert len(cascade.artifact.policy.temperatures) == 3
    assert right >= last - 0.05
    assert cascade.front[0].cost < cascade.front[-1].cost <= sum(cascade._macs())


def test_what_nothing_can_measure_is_no_budget(elsewhere: Any, labels: Tensor) -> None:
    cascade = Cascade.of_exits(elsewhere.graph, target="tvm-cortex-m7")
    with pytest.raises(InputError, match="a budget is of milliseconds, which nothing measures here"):
        cascade.fit(IMAGES, labels, budget=1.0)

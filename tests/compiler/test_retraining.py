"""`optimize(train=...)`: what passes have left is trained, and never ends below where it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training import X, Y, accuracy, few_bits, network

import graphopt
from graphopt.artifacts.report import Report
from graphopt.passmanager.step import Step
from graphopt.training import Unseen
from graphopt.training.quantization import METHODS
from graphopt.utils.errors import InputError

TARGET = few_bits(2, 4)


def optimized(**changes: Any) -> graphopt.Optimized:
    options: dict[str, Any] = {
        "target": TARGET,
        "calibration": X,
        "measure": False,
        "train": (X, Y),
        "batch_size": 16,
        "rate": 5e-3,
    }
    return graphopt.optimize(network(), X[:2], **{**options, **changes})


def training(report: Report) -> Step:
    (found,) = (step for step in report.steps if step.name == "Train")
    return found


def score(line: tuple[str, str]) -> float:
    return float(line[1].split("score ")[1].split(",")[0])


def test_the_best_by_evaluate_is_deployed_and_the_report_says_what_training_did() -> None:
    result = optimized(evaluate=accuracy, epochs=4)
    step = training(result.report)
    assert [site for site, _ in step.changes] == ["before", *(f"epoch {n}" for n in range(1, 5))]
    (kept,) = (line for line in step.changes if "kept" in line[1])
    assert score(kept) == max(map(score, step.changes))
    assert score(kept) > score(step.changes[0])
    assert result.report.accuracy_after == pytest.approx(score(kept), abs=2.1)  # an image may lie on a border
    assert "train" in result.report.timings.to_dict().__repr__()
    assert step.options["quantizers"] == "lsq"
    answers = torch.as_tensor(result.artifact(X))
    assert torch.equal(answers, torch.as_tensor(graphopt.simulate(result.graph, TARGET)(X)))


def test_without_evaluate_a_tenth_of_the_data_decides_and_labels_are_not_needed() -> None:
    held = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[:5]
    own = network()(X).argmax(1)
    assert (own[held] == Y[held]).double().mean() <= 0.5
    for changes, judge in (
        ({"train": (X, own)}, Unseen(X[held], network())),
        ({"train": (X, own), "teacher": False}, Unseen(X[held], network())),
        ({"train": X}, Unseen(X[held], network())),
        ({}, lambda model: 100 * float((model(X[held]).argmax(1) == Y[held]).double().mean())),
    ):
        result = optimized(epochs=2, **changes)
        lines = training(result.report).changes
        (kept,) = (line for line in lines if "kept" in line[1])
        assert score(kept) == max(map(score, lines))
        assert score(kept) == pytest.approx(judge(result.graph), rel=1e-3)


@pytest.mark.thorough
def test_a_loader_is_judged_on_calibration_data_and_the_teacher_may_be_another_or_none() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    asked: list[int] = []

    def teacher(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return torch.nn.functional.one_hot(Y[: len(x)], 3).float() * 4

    optimized(train=loader, teacher=teacher, epochs=1)
    assert asked[-3:] == [16, 16, 16]
    assert training(optimized(train=loader, teacher=False, epochs=1).report)


@pytest.mark.thorough
@pytest.mark.parametrize("quantizers", sorted(METHODS))
def test_every_method_by_name(quantizers: str) -> None:
    result = optimized(quantizers=quantizers, epochs=1)
    simulated = torch.as_tensor(graphopt.simulate(result.graph, TARGET)(X))
    assert torch.equal(torch.as_tensor(result.artifact(X)), simulated)


@pytest.mark.thorough
def test_pruned_and_float_networks_train_too() -> None:
    pruned = optimized(keep_macs=0.7, epochs=2, evaluate=accuracy)
    assert {"Prune", "Train"} <= {step.name for step in pruned.report.steps}
    plain = optimized(passes=[], epochs=2, evaluate=accuracy)
    assert score(training(plain.report).changes[-1]) >= score(training(plain.report).changes[0])


def test_the_callers_model_data_and_random_numbers_stay_as_they_are() -> None:
    model, x = network(), X.clone()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    graphopt.optimize(model, x[:2], target=TARGET, calibration=x, measure=False, train=(x, Y), epochs=1)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(x, X)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": None}, "give the training data"),
        ({"max_drop": 1.0, "evaluate": accuracy}, "max_drop or train"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"quantizers": "lsqq"}, "did you mean 'lsq'"),
        ({"teacher": True}, "teacher is a model"),
        ({"train": iter([X])}, "iterator"),
        ({"train": (X, Y[:3])}, "48 inputs and 3 targets"),
        ({"train": [torch.zeros(4, 5)]}, "batch 1 of the training data"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    def unreached(model: Any) -> float:
        raise AssertionError("work was done before")

    with pytest.raises(InputError, match=words):
        optimized(**{"passes": lambda target, data: [unreached], **changes})


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(model: Any) -> float:
        calls.append(0)
        if len(calls) == 4:  # the original, before, the first epoch; now the second
            raise KeyboardInterrupt
        return accuracy(model)

    with pytest.raises(KeyboardInterrupt):
        optimized(evaluate=interrupted, epochs=3, training_checkpoint=tmp_path)
    resumed = optimized(evaluate=accuracy, epochs=3, training_checkpoint=tmp_path)
    whole = optimized(evaluate=accuracy, epochs=3)
    assert torch.equal(torch.as_tensor(resumed.artifact(X)), torch.as_tensor(whole.artifact(X)))


def test_data_by_name_are_files_without_labels_or_functions_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    (tmp_path / "digits_of_a_test.py").write_text("from training import X, Y\ndef labelled(): return X, Y\n")
    monkeypatch.syspath_prepend(tmp_path)
    by_name = optimized(train=str(tmp_path / "x.npy"), epochs=1, evaluate=accuracy)
    assert "loss" in training(by_name.report).changes[-1][1]
    labelled = optimized(train="digits_of_a_test:labelled", epochs=2, evaluate=accuracy)
    whole = optimized(train=(X, Y), epochs=2, evaluate=accuracy)
    assert torch.equal(torch.as_tensor(labelled.artifact(X)), torch.as_tensor(whole.artifact(X)))
    with pytest.raises(InputError, match="there is no file"):
        optimized(train="nowhere.npy")

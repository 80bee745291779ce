"""Climbing until the accuracy is kept: order, stopping, what is lifted, and what happens when the judge fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import images, model_of
from rewriting import weight_sizes
from torch import Tensor

import graphopt
from graphopt.artifacts.report import Report
from graphopt.backends.onnxruntime import OnnxRuntimeArtifact
from graphopt.compiler.ladder import Ladder, Lowered, Tried
from graphopt.compiler.optimize import optimize
from graphopt.compiler.recipes import integer, prepare
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passmanager.runner import outputs, run
from graphopt.targets import find
from graphopt.utils.errors import InputError

DATA = [[images(8, seed=s)] for s in range(4)]
FOUR = find("x86").replace(weights=Format(4, per_channel=True))
TARGETS = {8: find("x86"), 4: FOUR}
LAYERS = ("stem.0", "first.0", "second", "head")

Judge = Callable[[Graph], float]


def climb(judge: Judge, least: float, bits: int = 8, data: Any = DATA, **options: Any) -> tuple[Tried, Report]:
    """Up the ladder of a small residual network, where `judge` scores simulated graphs and nothing is lowered."""
    target, report = TARGETS[bits], Report("residual", "x86")
    graph = Graph.capture(model_of("residual"), images(2))
    reference = outputs(graph)
    run(prepare(target), graph)

    def score(found: Graph) -> tuple[Lowered, float]:
        artifact = OnnxRuntimeArtifact.__new__(OnnxRuntimeArtifact)
        return Lowered(found, artifact, artifact), judge(found)

    ladder = Ladder(graph, target.formats, data, partial(integer, target, data), score, least, reference, **options)
    return ladder.climb(report), report


def weight_bits(graph: Graph) -> dict[str, int]:
    """Bits of every layer's weights; 32 where they are float."""
    return {site: bits for site, (bits, _) in weight_sizes(graph).items()}


@pytest.mark.thorough
def test_the_first_rung_that_is_good_enough_ends_it() -> None:
    attempt, report = climb(lambda graph: 1.0, least=0.9)
    assert [a.name for a in report.attempts] == ["nearest rounding"]
    assert report.attempts[0].met
    assert report.accuracy_after == attempt.accuracy == 1.0
    assert [s.name for s in report.steps] == ["DecomposeActivations", "Quantize", "CorrectBias"]
    assert not report.warnings


@pytest.mark.thorough
def test_rungs_come_in_the_order_of_their_cost() -> None:
    scores = iter([0.5, 0.6, 0.95])
    attempt, report = climb(lambda graph: next(scores), least=0.9, bits=4)
    assert [(a.name, a.accuracy, a.met) for a in report.attempts] == [
        ("nearest rounding", 0.5, False), ("gptq rounding", 0.6, False), ("adaround rounding", 0.95, True),
    ]  # fmt: skip
    assert attempt.rounding == "adaround"
    assert report.steps[-1].name == "LearnRounding"
    assert "good enough" in str(report)


@pytest.mark.thorough
def test_as_few_layers_as_suffice_get_more_bits() -> None:
    def judge(graph: Graph) -> float:
        return sum(bits >= 8 for bits in weight_bits(graph).values()) / 4

    attempt, report = climb(judge, least=0.75, bits=4)
    assert sorted(weight_bits(attempt.graph).values()) == [4, 8, 8, 8]
    assert [a.accuracy for a in report.attempts] == [0, 0, 0, 0.25, 0.5, 1.0, 0.75]
    assert not report.warnings


@pytest.mark.thorough
def test_eight_bits_come_before_float_and_the_worst_layers_first() -> None:
    def judge(graph: Graph) -> float:
        return sum(bits == 32 for bits in weight_bits(graph).values())

    attempt, report = climb(judge, least=1, bits=4)
    found = weight_bits(attempt.graph)
    assert sorted(found.values()) == [8, 8, 8, 32]
    worst = graphopt.analyze(climb(lambda g: 1.0, 0.0, bits=4)[0].graph, [b for (b,) in DATA]).ranked()
    assert set(LAYERS) <= {layer.name for layer in worst}
    assert any("3 in 8 bits" in a.name and "1 in float" in a.name for a in report.attempts)


@pytest.mark.thorough
def test_what_cannot_be_met_gives_the_best_and_a_warning() -> None:
    tried: list[float] = []

    def judge(graph: Graph) -> float:
        tried.append(0.4 if len(tried) == 1 else 0.3)
        return tried[-1]

    attempt, report = climb(judge, least=0.9)
    assert attempt.accuracy == report.accuracy_after == max(tried) == 0.4
    assert attempt.rounding == "gptq"
    assert not any(a.met for a in report.attempts)
    assert any("nothing that was tried keeps the accuracy at 0.9" in w for w in report.warnings)
    assert any("3 in float" in a.name for a in report.attempts)


@pytest.mark.thorough
def test_a_rung_that_cannot_be_judged_is_noted_and_the_next_is_tried() -> None:
    scores = iter([0.5, None, 0.95])

    def judge(graph: Graph) -> float:
        if (score := next(scores)) is None:
            raise InputError("evaluate raised OSError for the artifact: disk full")
        return score

    _, report = climb(judge, least=0.9)
    assert [a.accuracy for a in report.attempts] == [0.5, None, 0.95]
    assert "disk full" in report.attempts[1].note
    assert "disk full" in str(report)
    assert Report.from_dict(report.to_dict()).attempts == report.attempts


@pytest.mark.thorough
def test_too_few_images_for_a_rung_are_noted() -> None:
    _, report = climb(lambda graph: 0.0, least=1.0, data=DATA[:1])
    assert "fewer than a batch" in next(a.note for a in report.attempts if a.name == "adaround rounding")


@pytest.mark.thorough
def test_formats_of_the_caller_hold_unless_the_layer_is_lifted() -> None:
    def judge(graph: Graph) -> float:
        found = weight_bits(graph)
        assert found["head"] == 32
        return float(found["stem.0"] == 32)

    attempt, _ = climb(judge, least=1.0, formats={"head": None})
    assert weight_bits(attempt.graph)["head"] == 32


@pytest.mark.thorough
def test_every_attempt_has_a_folder_of_its_own_in_the_dump(tmp_path: Path) -> None:
    scores = iter([0.0, 1.0])
    climb(lambda graph: next(scores), least=0.5, dump=tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["attempt_00", "attempt_01"]
    assert (tmp_path / "attempt_01" / "02_LearnRounding.txt").is_file()


# ---- Through optimize -----------------------------------------------------------------------------------------------


def agreement(model: Callable[[Tensor], Tensor]) -> float:
    x = images(64, seed=9)
    with torch.no_grad():
        return float((model(x).argmax(1) == model_of("residual")(x).argmax(1)).double().mean())


def options(**more: Any) -> dict[str, Any]:
    return {"target": FOUR, "calibration": [b for (b,) in DATA], "measure": False, "evaluate": agreement, **more}


@pytest.mark.thorough
def test_optimize_keeps_the_accuracy_and_is_repeatable() -> None:
    first, second = (optimize(model_of("residual"), images(2), **options(max_drop=0.02)) for _ in range(2))
    report = first.report
    assert report.accuracy_after is not None
    assert report.accuracy_before == 1.0
    assert report.accuracy_after >= 0.98
    assert agreement(first.artifact) == report.accuracy_after
    assert [(a.name, a.accuracy) for a in report.attempts] == [(a.name, a.accuracy) for a in second.report.attempts]
    assert first.artifact.manifest.report["attempts"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_drop": -1.0}, "at least 0"),
        ({"max_drop": float("nan")}, "at least 0"),
        ({"max_drop": 0.5, "evaluate": None}, "max_drop needs evaluate"),
        ({"max_drop": 0.5, "rounding": "gptq"}, "leave out rounding"),
        ({"max_drop": 0.5, "passes": []}, "belong to the target's recipe"),
        ({"rounding": "up"}, "rounding must be one of nearest, gptq, adaround"),
        ({"max_drop": 0.5, "calibration": iter([images(8)])}, "several times"),
        ({"rounding": "gptq", "calibration": iter([images(8)])}, "several times"),
    ],
)
def test_options_that_do_not_fit_are_told_before_any_work(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        optimize(model_of("residual"), images(2), **options(**more))


def test_an_evaluate_that_fails_on_the_original_is_named() -> None:
    def broken(model: Any) -> float:
        raise KeyError("labels")

    with pytest.raises(InputError, match="evaluate raised KeyError for the original model: 'labels'"):
        optimize(model_of("residual"), images(2), **options(evaluate=broken))


@pytest.mark.thorough
def test_an_evaluate_that_fails_on_the_artifact_does_not_cost_the_result() -> None:
    def picky(model: Any) -> float:
        return float(isinstance(model, Graph)) if isinstance(model, Graph) else float("nan")

    done = optimize(model_of("residual"), images(2), **options(evaluate=picky))
    assert done.artifact(images(2)).shape == (2, 5)
    assert any("evaluate returned NaN for the artifact" in w for w in done.report.warnings)
    assert "NaN" in done.report.results()["accuracy"]


@pytest.mark.thorough
@pytest.mark.parametrize(("rounding", "last"), [(None, "LearnRounding"), ("nearest", "CorrectBias")])
def test_few_bits_are_rounded_on_data(rounding: Any, last: str) -> None:
    done = optimize(model_of("residual"), images(2), **options(evaluate=None, rounding=rounding))
    assert done.report.steps[-2].name == last

"""Structured pruning: options and graphs that do not fit, and pruning inside `optimize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from blocks import images
from prune_cases import DATA, plain, residual
from rewriting import apply, assert_close, capture

import graphopt
from graphopt.analysis.channels.groups import groups
from graphopt.passes.pruning import (
    Prune,
    Random,
    Taylor,
    sensitivity,
)

# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 1.0}, "keep_ratio must be over 0 and under 1, got 1.0"),
        ({"keep_ratio": -0.5}, "keep_ratio must be over 0 and under 1"),
        ({"keep_ratio": 0.5, "layers": {"a": 1.5}}, r"layers\['a'\] must be over 0 and under 1"),
        ({"keep_ratio": 0.5, "of": "flops"}, "of must be one of macs, parameters, channels, got 'flops'"),
        ({"keep_ratio": 0.5, "scope": "sensitivity"}, "scope='sensitivity' needs data"),
        ({"keep_ratio": 0.5, "compensate": "all"}, "compensate='all' needs data"),
        ({"keep_ratio": 0.5, "round_to": 0}, "round_to must be a whole number of at least 1"),
        ({"keep_ratio": 0.5, "kinds": {"heads"}}, "kinds must be among channels, rows, columns"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": lambda g, u: torch.zeros(3)}, r"one score per unit of 0, \[16\], got \[3\]"),
        ({"criterion": lambda g, u: torch.full((len(u),), float("nan"))}, "returned NaN for 0"),
        ({"layers": {"nothing*": None}}, "no group of channels is made by a layer that matches 'nothing\\*'"),
        ({"layers": {"*": None}}, "no channels can be pruned: 8 is fixed by the model's output"),
        ({"least": 16}, "only 0% of the cost can be removed, 70% were asked for"),
    ],
)
def test_what_a_graph_cannot_give_is_said_in_one_sentence(options: dict[str, Any], message: str) -> None:
    graph = capture(plain(), images(2))
    before = str(graph)
    with pytest.raises(ValueError, match=message):
        Prune(0.3, **options)(graph)
    assert str(graph) == before


def test_data_that_end_are_refused() -> None:
    class Once:
        one_shot = True

    with pytest.raises(ValueError, match="gone through several times"):
        Prune(0.5, data=Once())  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    graph = capture(plain(), images(2))
    with pytest.raises(ValueError, match="the loss on a batch is nan"):
        Prune(0.5, criterion=Taylor(DATA, loss=lambda out, batch: out.sum() * float("nan")))(graph)


def test_random_scores_repeat_with_the_seed() -> None:
    graph = capture(plain(), images(2))
    group = groups(graph)[0]
    assert torch.equal(Random(3)(graph, group), Random(3)(graph, group))
    assert not torch.equal(Random(3)(graph, group), Random(4)(graph, group))


# ---- In the main job ------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_optimize_prunes_first_and_reports_it() -> None:
    model = residual(32).eval()
    result = graphopt.optimize(model, images(2), target="x86", calibration=DATA, keep_macs=0.6, measure=False)
    step = result.report.steps[0]
    assert step.name == "Prune"
    assert result.report.original is not None
    assert 0.3 < step.macs / result.report.original.macs <= 0.6
    assert result.artifact(images(4)).shape == (4, 5)


@pytest.mark.thorough
def test_without_real_data_optimize_prunes_by_the_weights() -> None:
    result = graphopt.optimize(residual(32).eval(), images(2), target="x86", keep_macs=0.6, measure=False)
    assert result.report.steps[0].options["data"] is None
    assert result.report.original is not None
    assert result.report.steps[0].macs <= 0.6 * result.report.original.macs


def test_keep_macs_goes_with_the_recipe_only() -> None:
    with pytest.raises(ValueError, match="put Prune"):
        graphopt.optimize(plain().eval(), images(2), passes=[], keep_macs=0.5)


@pytest.mark.thorough
def test_what_does_not_fit_into_memory_is_computed_anew_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    start = capture(residual(8), images(2))
    graphs = [start.clone() for _ in range(3)]
    for budget, graph in zip((2**31, 40_000, 0), graphs, strict=True):
        monkeypatch.setattr("graphopt.fitting.fit.MEMORY", budget)
        apply(Prune(0.6, data=DATA), graph)
    assert_close(graphs[1](images(4)), graphs[0](images(4)), 1e-5)
    assert_close(graphs[2](images(4)), graphs[0](images(4)), 1e-5)


def test_progress_counts_every_unit_and_the_log_names_every_group(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bars: dict[str, list[int]] = {}

    @contextmanager
    def bar(description: str, total: int) -> Iterator[Any]:
        counted = bars.setdefault(description, [total, 0])

        def advance() -> None:
            counted[1] += 1

        yield advance

    monkeypatch.setattr(sensitivity, "progress", bar)
    graph = capture(residual(), images(2))
    found = [group for group in groups(graph) if not group.fixed.all()]
    with caplog.at_level("INFO", logger="graphopt.passes"):
        Prune(0.6, data=DATA, scope="sensitivity").plan(graph)
    units = sum(map(len, found))
    assert bars == {"measuring sensitivity": [units, units]}
    assert [record.getMessage() for record in caplog.records if record.name.startswith("graphopt.passes")] == [
        f"measured {n} of {len(found)} groups: {group.name}, {len(group)} units" for n, group in enumerate(found, 1)
    ]

"""`Factorize` behind and in front of other passes, and inside `optimize`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blocks import images
from factorized import DATA, Clock, network
from rewriting import capture, flat

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.compiler.latency import LatencyTimer
from graphopt.compiler.recipes import recipe
from graphopt.ir import cost as measure
from graphopt.passes.factorization import Factorize
from graphopt.passes.pruning import Prune
from graphopt.passmanager.runner import run
from graphopt.targets import find
from graphopt.utils.errors import InputError


@pytest.mark.thorough
def test_pruned_factorized_and_quantized_it_runs_and_trains() -> None:
    graph = capture(network(32), images(2))
    run([Prune(0.8, data=DATA), Factorize(target_macs=0.7, data=DATA)], graph)
    graph.train()
    flat(graph(DATA[0][0]))
    graph(DATA[0][0]).square().mean().backward()
    assert all(p.grad is not None for p in graph.parameters())
    graph.eval()
    target = find("host")
    reference = graph.clone()
    run(recipe(target, DATA), graph)
    artifact = lower(graph, target)
    answers = torch.as_tensor(artifact(DATA[0][0]))
    assert measure.sqnr(reference(DATA[0][0]), answers) > 15


@pytest.mark.thorough
def test_optimize_takes_it_among_its_passes() -> None:
    result = graphopt.optimize(
        network().eval(),
        images(1),
        target="x86",
        calibration=torch.cat([b[0] for b in DATA]),
        passes=lambda target, data: [Factorize(target_macs=0.5, data=data), *recipe(target, data)],
        measure=False,
    )
    assert result.report.steps[0].name == "Factorize"
    assert result.report.integer_macs == 1.0
    assert result.report.steps[0].macs <= 0.5 * result.report.original.macs  # type: ignore[union-attr]


@pytest.mark.thorough
def test_optimize_factorizes_first_where_it_is_asked_to() -> None:
    model, data = network(48).eval(), torch.cat([b[0] for b in DATA])
    result = graphopt.optimize(
        model, images(1), target="x86", calibration=data, keep_macs=0.7, shrink_by="factorize", measure=False
    )
    assert result.report.steps[0].name == "Factorize"
    assert result.report.original is not None
    assert result.report.steps[0].macs <= 0.7 * result.report.original.macs


@pytest.mark.thorough
def test_optimize_prunes_and_then_factorizes_for_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clock = Clock(0.001, 1.0)
    monkeypatch.setattr(LatencyTimer, "fresh", lambda self, graphs: clock(graphs))
    result = graphopt.optimize(
        network(48).eval(), images(1), target="host", keep_macs=0.8, max_latency=0.7, measure=False
    )
    assert [step.name for step in result.report.steps[:2]] == ["Prune", "Factorize"]
    assert (tmp_path / "graphopt" / "latency.json").exists()


@pytest.mark.thorough
def test_ways_to_shrink_that_do_not_go_together_are_refused() -> None:
    model = network().eval()
    for wrong, message in (
        ({"keep_macs": 0.5, "shrink_by": "magic"}, "'prune' or 'factorize'"),
        ({"keep_macs": 0.5, "shrink_by": "factorize", "max_latency": 0.5}, "keep_macs or max_latency"),
        ({"max_latency": 0.5, "passes": []}, "belong to the target's recipe"),
    ):
        with pytest.raises(InputError, match=message):
            graphopt.optimize(model, images(1), **wrong)  # type: ignore[arg-type]

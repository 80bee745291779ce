"""`Factorize` for a time: the stopwatch, and what is not worth its operators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from blocks import conv, images
from factorized import Clock, network
from rewriting import apply, capture
from torch import nn

from graphopt.compiler.latency import LatencyTimer
from graphopt.ir.graph import Graph
from graphopt.passes.factorization import Factorize
from graphopt.targets import find
from graphopt.utils.errors import InputError


@pytest.mark.thorough
def test_a_time_is_met_where_work_is_what_costs() -> None:
    whole = capture(network(), images(2))
    graph, clock = whole.clone(), Clock(0.001, 1.0)
    changes = apply(Factorize(max_latency=0.6, timer=clock), graph)
    old, new = clock([whole, graph])
    assert new <= 0.6 * old
    assert changes[0].site == "(network)"
    assert "ms" in changes[0].what
    assert any(what.startswith(("Separable", "Tucker", "ChannelWise")) and " ms, error" in what for _, what in changes)


@pytest.mark.thorough
def test_layers_where_every_operator_costs_are_left_alone_and_the_plan_says_why() -> None:
    graph = capture(network(), images(2))
    before = str(graph)
    slow = Factorize(target_macs=0.7, timer=Clock(100.0, 0.001))
    with pytest.raises(ValueError, match="nothing is faster than its"):
        slow(graph)
    assert str(graph) == before


@pytest.mark.thorough
def test_a_network_that_becomes_slower_as_a_whole_stays_as_it_is() -> None:
    whole = capture(network(), images(2))

    class Deceived(Clock):
        """Chains look fast alone; together they are not."""

        def __call__(self, graphs: Sequence[Graph]) -> list[float]:
            alone = len(graphs[0].calls()) < 4
            return super().__call__(graphs) if alone else [10.0 + 0.1 * len(g.calls()) for g in graphs]

    graph = whole.clone()
    assert Factorize(max_latency=0.5, timer=Deceived(0.0, 1.0))(graph) == []
    assert str(graph) == str(whole)


@pytest.mark.thorough
def test_a_saving_larger_than_planned_is_taken_back() -> None:
    """Alone, a layer seems to take half of what it takes in the network."""

    class Halved(Clock):
        def __call__(self, graphs: Sequence[Graph]) -> list[float]:
            return [t / 2 if len(g.calls()) < 4 else t for g, t in zip(graphs, super().__call__(graphs), strict=True)]

    whole = capture(network(48), images(2))
    graph, clock = whole.clone(), Halved(0.0, 1.0)
    apply(Factorize(max_latency=0.8, timer=clock), graph)
    old, new = clock([whole, graph])
    assert 0.7 < new / old <= 0.8


@pytest.mark.thorough
def test_a_time_that_cannot_be_met_is_met_as_far_as_it_goes_and_said() -> None:
    graph = capture(network(), images(2))
    changes = apply(Factorize(max_latency=0.02, timer=Clock(0.05, 1.0)), graph)
    assert "0.02 was asked for, nothing faster was found" in changes[0].what


@pytest.mark.thorough
def test_a_stopwatch_measures_once_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Sequential(conv(3, 8), nn.ReLU()), images(1), dynamic_batch=False)
    timer = LatencyTimer("host", integer=False, cache=tmp_path / "deep" / "latency.json", repeats=5)
    first = timer([graph, graph])
    assert all(ms > 0 for ms in first)
    monkeypatch.setattr(LatencyTimer, "fresh", lambda self, graphs: [7.0] * len(graphs))
    assert timer([graph, graph]) == first
    assert timer([graph]) == [7.0], "another list is another measurement"
    assert LatencyTimer("host", integer=True, cache=timer.cache)([graph, graph]) == [7.0, 7.0]
    timer.cache.write_text("{ damaged")
    assert timer([graph, graph]) == [7.0, 7.0]
    assert len(json.loads(timer.cache.read_text())) == 1


def test_a_stopwatch_for_another_machine_says_so() -> None:
    other = {"x86": "arm", "arm": "x86"}["arm" if find("host").runtime.architecture == "aarch64" else "x86"]
    with pytest.raises(InputError, match="nothing can be timed for it here"):
        LatencyTimer(other)


@pytest.mark.thorough
def test_integers_are_timed_as_integers(tmp_path: Path) -> None:
    graph = capture(nn.Sequential(conv(16, 32), nn.ReLU()), torch.randn(1, 16, 32, 32), dynamic_batch=False)
    (ms,) = LatencyTimer("host", cache=tmp_path / "latency.json", repeats=5)([graph])
    assert ms > 0

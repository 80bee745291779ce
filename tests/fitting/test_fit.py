"""The loop that fits regions of a changed graph on data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted import DATA, assert_equal, pair, tasks
from rewriting import capture
from torch import Tensor, nn
from torch.fx.node import Node

from graphopt.execution.executor import Executor
from graphopt.fitting import least_squares
from graphopt.fitting.fit import Found, Parametrization, fit
from graphopt.fitting.least_squares import LayerWeights
from graphopt.fitting.region import Region
from graphopt.fitting.samples import Samples
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.utils import terminal
from graphopt.utils.errors import InputError, NonFiniteError


def error(original: Graph, graph: Graph) -> float:
    with torch.no_grad():
        return sum(float((original(*batch) - graph(*batch)).square().sum()) for batch in DATA)


# ---- Order and samples ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_original_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original, graph = pair()
    layers = [node for node in original.calls() if Layer.of(node)]
    calls = dict.fromkeys(layers, 0)
    call = Executor.call

    def counting(self: Executor, node: Node, values: Mapping[Node, Any]) -> Any:
        if node in calls:
            calls[node] += 1
        return call(self, node, values)

    monkeypatch.setattr(Executor, "call", counting)
    fit(original, graph, DATA, tasks(original, graph), "fitting")
    assert set(calls.values()) == {len(DATA)}


def test_a_region_gets_what_regions_fitted_before_it_give_and_what_the_original_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (original, graph), seen, solve = pair(), {}, LayerWeights.solve

    def watched(self: LayerWeights, graph: Graph, samples: Samples) -> Iterator[Found]:
        seen[self.layer.node] = samples
        return solve(self, graph, samples)

    monkeypatch.setattr(LayerWeights, "solve", watched)
    before = error(original, graph)
    fits = fit(original, graph, DATA, tasks(original, graph), "fitting")
    assert all(found.accepted for found in fits)
    assert error(original, graph) < 0.02 * before
    names = {node.name: node for node in original.nodes}
    assert list(seen) == [node for node in graph.calls() if Layer.of(node)]
    for node, samples in seen.items():
        layer, source = Layer.of(node), names[node.name]
        assert layer is not None
        for part, batch in zip(samples.parts, DATA, strict=True):
            here, there = Executor(graph).run([layer.input], batch), Executor(original).run([source], batch)
            assert torch.equal(part.inputs[0], here[layer.input])
            if graph.site(node) != "wide":  # which makes up for the stream
                assert torch.equal(part.wanted, there[source])


def test_what_a_residual_stream_has_lost_is_wanted_of_the_layer_that_adds_to_it() -> None:
    (original, graph), wanted = pair(), {}

    class Watched(LayerWeights):
        def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
            wanted[graph.site(self.layer.node)] = samples.parts[0].wanted
            return super().solve(graph, samples)

    only = [node.name for node in graph.calls() if graph.site(node) == "wide"]
    names = {node.name: node for node in original.nodes}
    fit(original, graph, DATA, Watched.all_of(graph, names, only=only), "fitting")
    lost = []
    for g in (original, graph):
        stream, _ = g.calls(torch.ops.aten.add.Tensor)[0].all_input_nodes
        lost.append(Executor(g).run([stream], DATA[0])[stream])
    wide = names[only[0]]
    y = Executor(original).run([wide], DATA[0])[wide]
    torch.testing.assert_close(wanted["wide"], y + lost[0] - lost[1])


@pytest.mark.thorough
def test_the_data_are_gone_through_once_and_not_held_before() -> None:
    original, graph = pair()

    class Counted:
        walks = 0

        def __iter__(self) -> Iterator[list[Tensor]]:
            self.walks += 1
            return iter(DATA)

    data = Counted()
    fit(original, graph, data, [], "fitting")
    assert data.walks == 0
    fit(original, graph, data, tasks(original, graph), "fitting")
    assert data.walks == 1


@pytest.mark.thorough
@pytest.mark.parametrize("memory", [0, 20_000])
def test_beyond_the_memory_it_gives_the_same_bit_for_bit_from_files(memory: int, tmp_path: Path) -> None:
    original, graph = pair()
    spilled = graph.clone()
    fit(original, graph, DATA, tasks(original, graph), "fitting")
    fit(original, spilled, DATA, tasks(original, spilled), "fitting", memory=memory, folder=tmp_path)
    assert_equal(graph, spilled)
    assert not list(tmp_path.iterdir())


def test_channels_that_are_gone_are_not_wanted() -> None:
    original = capture(nn.Sequential(nn.Conv2d(3, 6, 3)), DATA[0][0][:2])
    narrow = nn.Conv2d(3, 2, 3)
    graph = capture(nn.Sequential(narrow), DATA[0][0][:2])
    (node,) = (n for n in graph.calls() if Layer.of(n))
    kept = {node.name: torch.tensor([1, 4])}
    names = {n.name: n for n in original.nodes}
    fit(original, graph, DATA, LayerWeights.all_of(graph, names, kept), "fitting")
    torch.testing.assert_close(graph(*DATA[0]), original(*DATA[0])[:, [1, 4]], rtol=0, atol=0.01)


# ---- Acceptance -----------------------------------------------------------------------------------------------------


class Given(Parametrization):
    """A weight that someone gives, whatever the samples say."""

    layer: Layer
    weight: Tensor

    def __init__(self, layer: Layer, source: Layer, weight: Tensor) -> None:
        super().__init__(region=Region.of_layer(layer), source=Region.of_layer(source), channel_dim=-1 - layer.dims)
        self.layer, self.weight = layer, weight

    def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
        yield {"weight": self.weight}

    def constants(self, graph: Graph, found: Found) -> Mapping[Node, Any]:
        return {self.layer.weight: found["weight"]}

    def store(self, graph: Graph, found: Found) -> None:
        graph.put_constant(self.layer.weight, found["weight"])


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_what_is_better_on_samples_held_out_is_taken_and_what_is_worse_is_not(factor: float) -> None:
    """The changed network's weight is 1.2 times the original's; it is given 1.2 * factor, nearer or further away."""
    original = capture(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), DATA[0][0][:2])
    graph = original.clone()
    (layer,) = (found for node in graph.calls() if (found := Layer.of(node)))
    (source,) = (found for node in original.calls() if (found := Layer.of(node)))
    weight = 1.2 * original.tensor(source.weight)
    graph.put_constant(layer.weight, weight)
    start = graph.clone()
    (found,) = fit(original, graph, DATA, [Given(layer, source, weight * factor)], "fitting")
    assert found.before == pytest.approx(0.04, rel=1e-3)
    assert found.after == pytest.approx((1.2 * factor - 1) ** 2, rel=1e-3)
    assert found.accepted == (factor < 1)
    assert found.error == min(found.before, found.after)
    if factor > 1:
        assert_equal(graph, start)
    else:
        assert torch.equal(graph.tensor(layer.weight), weight * factor)


def test_a_closed_form_that_fits_its_few_samples_only_is_refused_or_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what the second layer reads is gone; in 14 samples the other half of 40 features can stand in for it perfectly."""
    original = capture(nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 4)), torch.randn(2, 80))
    graph = original.clone()
    first, second = (layer for node in graph.calls() if (layer := Layer.of(node)))
    graph.put_constant(first.weight, graph.tensor(first.weight) * (torch.arange(80) < 40)[:, None])
    start, generator = graph.clone(), torch.Generator().manual_seed(0)
    names = {node.name: node for node in original.nodes}
    few, many = ([[torch.randn(n, 80, generator=generator)]] for n in (16, 4000))
    (task,) = LayerWeights.all_of(graph, names, only=[second.node.name])
    with monkeypatch.context() as patch:
        patch.setattr(least_squares, "RIDGES", least_squares.RIDGES[:1])
        (free,) = fit(original, graph, few, [task], "fitting")
        assert free.after > free.before
        assert_equal(graph, start)
    cautious = graph.clone()
    (held,) = fit(original, cautious, few, tasks(original, cautious)[1:], "fitting")
    assert held.after < held.before < free.after  # by a stronger ridge
    (found,) = fit(original, graph, many, [task], "fitting")
    assert found.accepted


def test_more_cautious_choices_are_tried_as_long_as_they_gain() -> None:
    original = capture(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), DATA[0][0][:2])
    graph, asked = original.clone(), list[float]()
    (layer,) = (found for node in graph.calls() if (found := Layer.of(node)))
    (source,) = (found for node in original.calls() if (found := Layer.of(node)))
    weight = original.tensor(source.weight)
    graph.put_constant(layer.weight, 3 * weight)

    class Several(Given):
        def solve(self, graph: Graph, samples: Samples) -> Iterator[Found]:
            for factor in (2.0, 1.5, 1.6, 1.0):
                asked.append(factor)
                yield {"weight": factor * weight}

    (found,) = fit(original, graph, DATA, [Several(layer, source, weight)], "fitting")
    assert asked == [2.0, 1.5, 1.6]
    assert found.after == pytest.approx(0.25, rel=1e-3)
    assert torch.equal(graph.tensor(layer.weight), 1.5 * weight)


@pytest.mark.thorough
def test_a_single_sample_is_fitted_on_and_judged_by() -> None:
    original, graph = pair()
    fits = fit(original, graph, [[DATA[0][0][:1]]], tasks(original, graph), "fitting")
    assert any(found.accepted for found in fits)
    assert all(found.after <= found.before or not found.accepted for found in fits)


# ---- What is said ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_progress_counts_the_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[list[Any]] = []

    class Recorder:
        @contextmanager
        def bar(self, description: str, total: int | None) -> Iterator[Callable[[], None]]:
            bars.append([description, total, 0])

            def advance() -> None:
                bars[0][2] += 1

            yield advance

    monkeypatch.setattr(terminal, "_installed", Recorder())
    original, graph = pair()
    fit(original, graph, DATA, tasks(original, graph), "mending layers")
    assert bars == [["mending layers", 4, 4]]


def test_data_that_are_not_finite_are_named() -> None:
    original, graph = pair()
    broken = [DATA[0], [DATA[1][0].clone()]]
    broken[1][0][0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="contains NaN"):
        fit(original, graph, broken, tasks(original, graph), "fitting")


def test_data_without_a_batch_are_refused() -> None:
    original, graph = pair()
    with pytest.raises(InputError, match="the data to fit to are empty"):
        fit(original, graph, [], tasks(original, graph), "fitting")

"""`Factorize`: what it weighs, what it chooses, when it keeps its hands off."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from blocks import conv, images
from factorized import DATA, distance, network
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Model, apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import SVD, ChannelWise, Factorize, Separable, Tucker
from graphopt.passes.factorization.allocate import Option, allocate
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.site import sites
from graphopt.passmanager.runner import run

# ---- Allocation -----------------------------------------------------------------------------------------------------

options = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)).map(lambda t: Option(*map(float, t))), max_size=4)


@given(st.lists(options, min_size=1, max_size=4), st.floats(0.05, 1.0))
@settings(max_examples=200, deadline=None)
def test_the_allocation_saves_enough_and_is_the_best_but_for_one_option(
    layers: list[list[Option]], part: float
) -> None:
    most = sum(max((o.saved for o in each), default=0.0) for each in layers)
    wanted = part * most
    picked = allocate(layers, wanted)
    chosen = [each[i] for each, i in zip(layers, picked, strict=True) if i is not None]
    assert sum(o.saved for o in chosen) >= wanted - 1e-9
    every = itertools.product(*[[Option(0.0, 0.0), *each] for each in layers])
    best = min(sum(o.damage for o in choice) for choice in every if sum(o.saved for o in choice) >= wanted - 1e-9)
    largest = max((o.damage for each in layers for o in each), default=0.0)
    assert sum(o.damage for o in chosen) <= best + largest


def test_the_cheaper_layer_is_factorized_first() -> None:
    layers = [[Option(10.0, 5.0)], [Option(10.0, 1.0), Option(12.0, 9.0)]]
    assert allocate(layers, 10.0) == [None, 0]
    assert allocate(layers, 20.0) == [0, 0]
    assert allocate(layers, 0.0) == [None, None]


# ---- Targets --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.8, 0.5])
@pytest.mark.parametrize("data", [None, DATA])
def test_a_share_of_the_work_is_met_closely_without_touching_the_original(share: float, data: Any) -> None:
    whole = capture(network(), images(2))
    graph = whole.clone()
    before = str(whole)
    changes = apply(Factorize(target_macs=share, data=data), graph)
    kept = measure.macs(graph) / measure.macs(whole)
    assert share - 0.04 < kept <= share
    assert changes
    assert str(whole) == before


@pytest.mark.thorough
def test_parameters_are_a_target_too() -> None:
    whole = capture(network(), images(2))
    graph = whole.clone()
    apply(Factorize(target_parameters=0.5, data=DATA), graph)
    assert 0.42 < measure.parameters(graph) / measure.parameters(whole) <= 0.5


@pytest.mark.thorough
def test_data_and_choice_beat_the_same_share_for_all_from_the_weights() -> None:
    whole = capture(network(), images(2))
    graphs = {}
    passes: dict[str, Any] = {
        "chosen": Factorize(target_macs=0.5, data=DATA),
        "uniform": ChannelWise(0.45, data=DATA),
        "weights": ChannelWise(0.45),
    }
    for name, transform in passes.items():
        graphs[name] = whole.clone()
        apply(transform, graphs[name])
    lost = {name: distance(whole, graph) for name, graph in graphs.items()}
    assert lost["chosen"] < lost["uniform"] < lost["weights"]


@pytest.mark.thorough
def test_layers_are_named_to_stay_or_to_have_a_method() -> None:
    graph = capture(network(), images(2))
    chosen = {"head": None, "first*": Tucker((6, 7))}
    changes = dict(apply(Factorize(target_macs=0.6, data=DATA, layers=chosen), graph))
    assert changes["head"] == "left alone: by name"
    assert changes["first.0"].startswith("Tucker 24 -> 6 -> 7 -> 24")


@pytest.mark.thorough
def test_a_plan_is_a_table_and_changes_nothing() -> None:
    graph = capture(network(), images(2))
    before = str(graph)
    plan = Factorize(target_macs=0.5, data=DATA, layers={"head": None}).plan(graph)
    assert str(graph) == before
    text = str(plan)
    assert "left alone: by name" in text
    assert "first.0" in text
    assert sum(choice.chosen is not None for choice in plan.choices) >= 2


@pytest.mark.thorough
def test_only_methods_that_are_named_are_used() -> None:
    graph = capture(network(), images(2))
    changes = apply(Factorize(target_macs=0.7, methods=[Separable()]), graph)
    assert {what.split()[0] for _, what in changes} == {"Separable", "left"}
    assert any("no method applies" in what for _, what in changes)


@pytest.mark.thorough
def test_a_grouped_and_a_shared_layer_are_factorized_without_a_fit() -> None:
    shared = conv(16, 16)

    def body(m: Any, x: Tensor) -> Tensor:
        return m.two(m.shared(m.shared(m.one(x)).relu()).relu())  # type: ignore[no-any-return]

    model = Model(body, one=conv(3, 16), two=conv(16, 32, groups=2), shared=shared)
    whole = capture(model, images(2))
    graph = whole.clone()
    apply(Factorize(target_macs=0.6, data=DATA), graph)
    assert measure.macs(graph) <= 0.6 * measure.macs(whole)
    assert len({str(n.args[1].target) for n in graph.calls() if Layer.of(n) and "shared" in str(n.args[1].target)}) <= 3  # type: ignore[union-attr]


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({}, "exactly one of"),
        ({"target_macs": 0.5, "max_latency": 0.5}, "exactly one of"),
        ({"target_macs": 1.0}, "over 0 and under 1"),
        ({"target_macs": 0.5, "round_to": 0}, "round_to"),
        ({"target_macs": 0.5, "methods": []}, "methods is empty"),
        ({"target_macs": 0.5, "refine_steps": -1}, "refine_steps"),
        ({"max_latency": 0.5}, "needs a timer"),
    ],
)
def test_options_that_do_not_fit_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Factorize(**wrong)


@pytest.mark.thorough
def test_a_graph_that_does_not_fit_is_refused_in_one_sentence() -> None:
    graph = capture(network(), images(2))
    before = str(graph)
    for wrong, message in (
        ({"target_macs": 0.01}, "can be saved by factors"),
        ({"target_macs": 0.5, "layers": {"nowhere*": None}}, "no layer matches 'nowhere\\*'"),
        ({"target_macs": 0.5, "layers": {"head": Tucker(2)}}, "Tucker does not apply to head"),
        ({"target_macs": 0.5, "layers": {"*": None}}, "by name"),
        ({"target_macs": 0.5, "layers": {"head": SVD(99)}}, "above the full rank"),
    ):
        with pytest.raises(ValueError, match=message):
            Factorize(**wrong)(graph)  # type: ignore[arg-type]
    assert str(graph) == before


@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_at_half_of_the_work_also_in_integers(zoo: Any) -> None:
    x, y = (t[:2000] for t in zoo.cifar10("test"))
    data = [[part] for part in zoo.cifar10("train10k")[0][:512].split(64)]
    graph = capture(zoo.cifar_resnet(20), x[:2])

    def accuracy(model: Any) -> float:
        with torch.no_grad():
            return 100 * float((torch.as_tensor(model(x)).argmax(1) == y).float().mean())

    whole = measure.macs(graph)
    apply(Factorize(target_macs=0.5, data=data), graph)
    assert measure.macs(graph) <= 0.5 * whole
    factorized = accuracy(graph)
    assert factorized >= 88.0
    done = graphopt.optimize(graph, target="x86", calibration=[b[0] for b in data], measure=False)
    assert accuracy(done.artifact) >= factorized - 0.6  # of 2,000 images; the benchmark has all


@pytest.mark.parametrize("method", [SVD(), Tucker()], ids=str)
def test_layers_of_nothing_are_factorized_like_others(method: Method) -> None:
    """No rows, or no pixels: there are no multiply-accumulates to compare."""
    model = Model(
        lambda m, x: (m.linear(x.flatten(1)[:0]), m.conv(x[:0])), linear=nn.Linear(64, 8), conv=nn.Conv2d(4, 4, 3)
    ).eval()
    x = torch.randn(2, 4, 4, 4)
    graph = Graph.capture(model, x, dynamic_batch=False)
    ranks = {s.name: method.full(s.layer) for s in sites(graph) if not any(map(method.refuses, s.layers))}
    assert run([replace(method, layers={**ranks, "*": None})], graph)[0].changes
    assert [list(y.shape) for y in graph(x)] == [[0, 8], [0, 4, 2, 2]]

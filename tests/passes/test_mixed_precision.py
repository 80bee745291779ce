"""Bits by layer: the allocation, and what is done with a plan."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from mixed import BATCHES, CHOICES, WEIGHTS, X86, mixed, residual
from rewriting import Model, apply, capture, randomised
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantization import MixedPrecision, Quantize
from graphopt.passes.quantization.mixed import ilp
from graphopt.passes.quantization.mixed.agent import search
from graphopt.passes.quantization.mixed.cost import Cost, average_bits
from graphopt.passes.quantization.mixed.samples import split
from graphopt.passes.quantization.mixed.space import Space
from graphopt.passes.rounding import LearnRounding
from graphopt.targets import machine_here
from graphopt.utils.errors import InputError


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(randomised(residual()), BATCHES[0][0][:2])


def weight_bits(graph: Graph) -> dict[str, int]:
    """By layer, read off the quantizers of a simulated graph."""
    layers = [layer for node in graph.calls() if (layer := Layer.of(node))]
    quantizers = {graph.site(layer.node): layer.weight for layer in layers if layer.weight.target is FAKE_QUANTIZE}
    return {site: int(q.args[4] - q.args[3]).bit_length() for site, q in quantizers.items()}  # type: ignore[operator]


# ---- The allocation -------------------------------------------------------------------------------------------------


def brute_force(sensitivities: list[Any], cost: Cost) -> float:
    every = itertools.product(*(range(len(s)) for s in sensitivities))
    totals = [sum(s[i] for s, i in zip(sensitivities, a, strict=True)) for a in every if cost.meets(a)]
    return min(totals, default=float("inf"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("joint", [False, True], ids=["sums", "pairs"])
def test_the_integer_programme_finds_what_trying_everything_finds(seed: int, joint: bool) -> None:
    draw = np.random.default_rng(seed)
    bits = np.array([8.0, 4.0, 3.0, 2.0])
    sensitivities = [draw.random() * 4.0**-bits * draw.uniform(0.5, 2, 4) for _ in range(6)]
    work = draw.integers(1, 100, 6)
    pairs = {(i, i + 1): w * np.outer(bits, bits) for i, w in enumerate(work[:5])} if joint else {}
    cost = Cost("x", [0 * bits if joint else w * bits for w in work], pairs, constant=7.0)
    cost = cost.within(draw.uniform(0.8, 2.5) * cost((2,) * 6))
    found = ilp.solve(sensitivities, cost)
    assert found is not None
    assert cost.meets(found)
    total = sum(s[i] for s, i in zip(sensitivities, found, strict=True))
    assert total == pytest.approx(brute_force(sensitivities, cost), rel=1e-5)


def test_the_integer_programme_says_where_nothing_meets_the_budget() -> None:
    cost = Cost("x", [np.array([8.0, 2.0])] * 3, budget=5.0)
    assert ilp.solve([np.array([0.0, 1.0])] * 3, cost) is None


@pytest.mark.thorough
def test_an_agent_finds_a_far_better_assignment_than_uniform_bits_and_the_same_with_the_same_seed(graph: Graph) -> None:
    space = Space.of(graph, X86, [8, 4, 2], [], {})
    cost = average_bits(space, 4.0)
    harm = {8: 0.0, 4: 0.1, 2: 1.0}
    weights = dict(zip([d.name for d in space.decisions], (100.0, 1.0, 100.0, 100.0), strict=True))

    def divergence(assignment: Any) -> float:
        return sum(weights[d.name] * harm[b] for d, b in zip(space.decisions, space.bits(assignment), strict=True))

    found = search(space, cost, divergence, episodes=40, seed=3)
    assert cost.meets(found)
    assert divergence(found) < 0.6 * divergence(space.assignment(4, None))
    assert found == search(space, cost, divergence, episodes=40, seed=3)


# ---- What is done with a plan ---------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_pass_quantizes_as_its_plan_says_and_the_result_is_learned_and_lowered(graph: Graph) -> None:
    transform = mixed(average_bits=4, layers={"head": 8})
    plan, copied = transform.plan(graph), graph.clone()
    changes = apply(transform, copied)
    assert changes[0].what == plan.summary()
    assert weight_bits(copied) == {row.name: row.weights for row in plan.rows}
    assert weight_bits(copied)["head"] == 8
    by_hand = graph.clone()
    apply(Quantize(X86, BATCHES, formats=plan.formats), by_hand)
    assert str(by_hand) == str(copied)
    apply(LearnRounding(BATCHES), copied)
    assert weight_bits(copied) == weight_bits(by_hand)
    x = BATCHES[0][0][:4]
    with_vnni, here = (graphopt.simulate(copied, X86, machine=machine)(x) for machine in ("x86_64", machine_here()))
    assert measure.sqnr(copied(x), with_vnni) > 40
    assert measure.sqnr(here, lower(copied, X86)(x)) > 100


def test_planning_leaves_the_graph_alone_and_prints_a_table(graph: Graph) -> None:
    text, weights = str(graph), {name: t.clone() for name, t in graph.state_dict().items()}
    shown = str(mixed(average_bits=4).plan(graph))
    assert str(graph) == text
    assert all(torch.equal(t, weights[name]) for name, t in graph.state_dict().items())
    assert all(name in shown for name in (*WEIGHTS, "of 4 bits per weight", "uniform 4", "taken:"))


def test_uniform_bits_are_taken_where_the_search_is_misled(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "solve", lambda sensitivities, cost: (2, 2, 2, 2))  # 2 bits everywhere
    plan = mixed(average_bits=4).plan(graph)
    assert plan.chosen == "uniform 4"
    assert {row.weights for row in plan.rows} == {4}


def test_choosing_and_judging_samples_are_not_the_same(graph: Graph) -> None:
    samples = split(graph, [[torch.arange(50.0)[:, None]], [torch.arange(50.0, 100.0)[:, None]]])
    seen, held_out = (torch.cat([b[0] for b in part]).flatten().tolist() for part in (samples.seen, samples.held_out))
    assert len(seen) == len(held_out) == 50
    assert not set(seen) & set(held_out)


def test_a_single_sample_is_said_not_to_suffice(graph: Graph) -> None:
    plan = MixedPrecision(X86, [[BATCHES[0][0][:1]]], average_bits=4, choices=CHOICES).plan(graph)
    assert "held out" in plan.notes[0]


def test_a_budget_that_cannot_be_met_gives_the_fewest_bits_and_says_so(graph: Graph) -> None:
    plan = mixed(average_bits=1.5).plan(graph)
    assert not plan.met
    assert {row.weights for row in plan.rows} == {2}
    assert "less was asked for than there is" in str(plan)


def test_a_budget_for_float_leaves_everything_in_float(graph: Graph) -> None:
    copied = graph.clone()
    assert apply(mixed(average_bits=32, choices=(8, None)), copied) == []
    assert not copied.calls(FAKE_QUANTIZE)


def test_a_layer_may_be_left_in_float_where_size_allows(graph: Graph) -> None:
    copied = graph.clone()
    apply(mixed(max_bytes=sum(WEIGHTS.values()) + 3 * WEIGHTS["head"], choices=(8, None), sensitivity="kl"), copied)
    bits = weight_bits(copied)
    assert set(bits.values()) == {8}
    assert 0 < len(bits) < 4


@pytest.mark.thorough
def test_time_is_bought_where_it_is_cheapest(graph: Graph) -> None:
    price = {"stem": 4.0, "first": 3.0, "second": 2.0, "head": 1.0}

    def timer(graphs: Any) -> list[float]:  # what a layer costs in float, and 1 ms in integer
        return [sum(1.0 if name in weight_bits(g) else 1 + p for name, p in price.items()) for g in graphs]

    plan = mixed(max_latency_ms=7.5, choices=(4, None), timer=timer).plan(graph)
    floats = [row.name for row in plan.rows if row.weights is None]
    assert plan.met
    assert plan.cost == 4 + sum(price[name] for name in floats)
    assert floats
    short = mixed(max_latency_ms=3.0, choices=(4, None), timer=timer).plan(graph)
    assert not short.met
    assert short.cost == 4


@pytest.mark.thorough
def test_a_module_called_twice_has_one_format() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.twice(torch.relu(m.twice(torch.relu(m.stem(x)))))).mean((2, 3)))  # type: ignore[no-any-return]

    parts = {"stem": nn.Conv2d(3, 6, 3), "twice": nn.Conv2d(6, 6, 3, padding=1), "head": nn.Linear(6, 4)}
    graph = capture(Model(body, **parts), BATCHES[0][0][:2])
    plan = mixed(average_bits=4, activations=(8, 4)).plan(graph)
    assert [row.name for row in plan.rows if row.parameters] == ["stem", "twice", "head"]
    assert next(row.parameters for row in plan.rows if row.name == "twice") == 6 * 6 * 9
    apply(mixed(average_bits=4, activations=(8, 4)), graph)
    assert len(graph.calls(FAKE_QUANTIZE)) > 4


# ---- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of average_bits"),
        ({"average_bits": 4, "max_bytes": 10}, "got average_bits, max_bytes"),
        ({"average_bits": 0}, "average_bits must be a number over 0"),
        ({"average_bits": 40}, "at most 32"),
        ({"average_bits": 4, "choices": (4, 16)}, "target 'x86' has no 16-bit weights here; it has 2, 3, 4"),
        ({"average_bits": 4, "activations": (4, None)}, "no float activations here"),
        ({"average_bits": 4, "layers": {"stem": 12}}, r"layers\['stem'\]: target 'x86' has no 12-bit weights"),
        ({"average_bits": 4, "sensitivity": "guess"}, "sensitivity must be one of kl, sqnr, hessian, got 'guess'"),
        ({"average_bits": 4, "solver": "guess"}, "solver must be one of ilp, agent"),
        ({"average_bits": 4, "episodes": 0}, "episodes must be a whole number"),
        ({"average_bits": 4, "timer": lambda graphs: [1.0]}, "a timer is for max_latency_ms"),
        ({"max_latency_ms": 1.0}, "needs a timer"),
        ({"max_latency_ms": 1.0, "timer": lambda graphs: [1.0]}, "all integer formats take the same time"),
        ({"max_bit_operations": (4, 4)}, "one of activations"),
        ({"max_bit_operations": 0.5, "choices": (4, None)}, "no bit operations to count"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed(**options)


def test_only_formats_that_the_target_has_are_chosen() -> None:
    seven = X86.replace(weight_bits=(2, 4, 7), float_layers=False)
    with pytest.raises(ValueError, match="no 8-bit weights here; it has 2, 4, 7 bits"):
        MixedPrecision(seven, BATCHES, average_bits=4, choices=(4, 8))
    with pytest.raises(ValueError, match="no float weights here"):
        MixedPrecision(seven, BATCHES, average_bits=4, choices=(4, None))


def test_a_pattern_that_matches_nothing_is_named(graph: Graph) -> None:
    with pytest.raises(InputError, match="the pattern 'tail' in layers matches no layer; they are named like stem"):
        mixed(average_bits=4, layers={"tail": 8}).plan(graph)


def test_an_output_without_classes_is_sent_to_another_sensitivity() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 1)), BATCHES[0][0][:2])
    with pytest.raises(InputError, match="no classes to compare; use sensitivity='sqnr'"):
        mixed(average_bits=4, sensitivity="kl").plan(graph)
    assert mixed(average_bits=4, sensitivity="sqnr").plan(graph).met


# ---- A trained network ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bits_are_better_spread_than_even_on_a_trained_network(zoo: Any) -> None:
    x = zoo.cifar10("train10k")[0][:192]
    graph = Graph.capture(zoo.cifar_resnet(20), (x[:2],))
    apply(FoldBatchNorm(), graph)
    plan = MixedPrecision(X86, [[part] for part in x.split(64)], average_bits=2.5, choices=(2, 3, 4, 8)).plan(graph)
    assert plan.chosen == "ilp"
    assert plan.divergence["ilp"] < 0.7 * plan.divergence["uniform 2"]
    bits = {row.name: row.weights or 0 for row in plan.rows}
    assert bits["conv1"] >= 4  # few weights that everything depends on
    assert bits["layer3.2.conv1"] <= 3


@pytest.mark.parametrize(
    ("target", "bits"), [("x86", (2, 3, 4, 5, 6, 8)), ("narrow", (2, 3, 4, 5, 6, 7)), ("few", (4,))]
)
def test_the_usual_choices_are_those_that_the_target_has(target: str, bits: tuple[int, ...]) -> None:
    has = {"x86": tuple(range(2, 9)), "narrow": tuple(range(2, 8)), "few": (4,)}[target]
    chosen = MixedPrecision(X86.replace(weight_bits=has), BATCHES, average_bits=4.0)
    assert chosen.choices == bits

"""`Factorize`: what it weighs, what it chooses, when it keeps its hands off; the stopwatch; fits through an activation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, conv_bn, images
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Model, apply, capture, flat
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.compiler.latency import LatencyTimer
from graphopt.compiler.recipes import recipe
from graphopt.fitting.residual import Join
from graphopt.ir import cost as measure
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import SVD, ChannelWise, Factorize, Separable, Tucker
from graphopt.passes.factorization.allocate import Option, allocate
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.nonlinear import Activation, _auxiliary
from graphopt.passes.factorization.site import sites
from graphopt.passes.pruning import Prune
from graphopt.passmanager.runner import run
from graphopt.targets import find
from graphopt.utils.errors import InputError

DATA = [[images(16, seed=s)] for s in range(3)]


def network(width: int = 24) -> nn.Module:
    """Convolutions with some low rank in them, a residual sum, a head."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = F.relu(y + m.norm(m.second(m.first(y))))
        return m.head(m.wide(y).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Model(
        body,
        stem=conv_bn(3, width),
        first=conv_bn(width, width),
        second=conv(width, width, bias=False),
        norm=nn.BatchNorm2d(width),
        wide=conv_bn(width, 2 * width, 1),
        head=nn.Linear(2 * width, 10),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            u, s, v = torch.linalg.svd(module.weight.data.flatten(1), full_matrices=False)
            module.weight.data = (u * (s * torch.linspace(1, 0.05, len(s)) ** 2) @ v).reshape(module.weight.shape)
    return model


def distance(graph: Graph, other: Graph) -> float:
    """Relative squared error of the outputs on the data."""
    lost = power = 0.0
    with torch.no_grad():
        for (x,) in DATA:
            for a, b in zip(flat(graph(x)), flat(other(x)), strict=True):
                lost += float((a - b).square().sum())
                power += float(a.square().sum())
    return lost / power


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


# ---- Time -----------------------------------------------------------------------------------------------------------


class Clock:
    """Pretends: every operator takes a millisecond, and every million multiply-accumulates a given time."""

    def __init__(self, per_operator: float, per_million: float) -> None:
        self.per_operator, self.per_million, self.calls = per_operator, per_million, 0

    def __call__(self, graphs: Sequence[Graph]) -> list[float]:
        self.calls += 1
        return [
            self.per_operator * sum(Layer.of(n) is not None for n in g.calls())
            + self.per_million * measure.macs(g) / 1e6
            for g in graphs
        ]


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


# ---- Fits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refinement", [{"nonlinear": True}, {"refine_steps": 200}])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_a_fit_through_the_activation_answers_better_behind_it(refinement: Any, activation: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(conv(3, 24, 5), nn.BatchNorm2d(24), activation())
    model[1].bias.data = torch.linspace(-1.5, 1.0, 24)
    whole = capture(model, images(2))
    lost = []
    for chosen in ({}, refinement):
        graph = whole.clone()
        apply(ChannelWise(4, data=DATA, **chosen), graph)
        lost.append(distance(whole, graph))
    assert lost[1] < 0.99 * lost[0]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_auxiliary_responses_are_the_minimum(activation: nn.Module, penalty: float) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(1, 5, 1), activation), torch.randn(1, 1, 4, 4))
    layer = next(layer for n in graph.calls() if (layer := Layer.of(n)))
    f = Activation.behind(graph, layer.node, 5)
    assert f is not None
    assert f.clips is not None
    y, response = 4 * torch.randn(200, 5), 4 * torch.randn(200, 5)
    found = _auxiliary(f, f(y), y, response, f.clips, penalty)

    def cost(z: Tensor) -> Tensor:
        return (f(y) - f(z)).square() + penalty * (z - response).square()

    grid = torch.linspace(-30, 30, 6001)[:, None, None].expand(-1, *y.shape)
    assert bool((cost(found) <= cost(grid).amin(0) + 1e-4).all())


def test_a_sum_is_seen_behind_a_layer_and_its_norm() -> None:
    graph = capture(network(), images(2))
    layers = {graph.site(n): n for n in graph.calls() if Layer.of(n)}
    join = Join.behind(layers["second"])
    assert join is not None
    assert join.norm is not None
    assert join.other.target is torch.ops.aten.relu.default
    assert Join.behind(layers["first.0"]) is None


def test_a_layer_before_a_sum_makes_up_for_what_the_stream_has_lost() -> None:
    """The stem is factorized badly; the branch behind it knows what is missing from the stream."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        return y + m.second(m.first(y).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    whole = capture(Model(body, stem=conv(3, 16), first=conv(16, 48), second=conv(48, 16, 1)), images(2))
    with_branch, without = whole.clone(), whole.clone()
    apply(ChannelWise(10, layers={"first": None}, data=DATA), with_branch)
    stem = {"stem.0.weight", "stem.1.weight", "stem.bias"}
    apply(ChannelWise(10, layers={"first": None}), without)
    without.load_state_dict(without.state_dict() | {k: v for k, v in with_branch.state_dict().items() if k in stem})
    assert distance(whole, with_branch) < 0.9 * distance(whole, without)


# ---- Chains of passes -----------------------------------------------------------------------------------------------


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

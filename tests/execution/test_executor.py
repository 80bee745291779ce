"""The executor gives what the model gives, whatever part of it runs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from awkward_models import MODELS, Case, case
from blocks import images
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Model, capture, flat
from small_models import MODELS as PLAIN
from torch import Tensor, nn
from torch.fx.node import Node

import graphopt
from graphopt.execution.executor import Executor, constant_calls
from graphopt.ir.graph import Graph
from graphopt.utils.errors import ExecutionError, InputError

aten = torch.ops.aten


def small() -> Graph:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4))


# ---- The whole graph -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_it_takes_and_returns_what_the_model_does(name: str) -> None:
    found = case(name)
    graph = found.capture()
    wanted = found.model.eval()(*(inputs := found.inputs(3)), **found.keywords)
    for answer in (Executor(graph)(*inputs, **found.keywords), batchwise(graph, found, inputs)):
        assert type(answer) is type(wanted)
        for one, other in zip(flat(answer), flat(wanted), strict=True):
            torch.testing.assert_close(one, other)


def batchwise(graph: Graph, found: Case, inputs: tuple[Any, ...]) -> Any:
    """The same from the input tensors alone."""
    executor = Executor(graph)
    return executor.nested(executor.run(graph.results, flat((inputs, dict(found.keywords)))))


@pytest.mark.thorough
def test_sizes_that_follow_the_batch_are_computed_where_they_are_returned() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            return {"y": y, "batch": y.shape[0], "elements": [x.shape[0] * 3 + 1]}

    x = torch.randn(4, 3, 8, 8)
    result = graphopt.optimize(Sized().eval(), x, target="arm", calibration=x, measure=False)
    for model in (Executor(result.graph), graphopt.simulate(result.graph, "arm"), result.artifact):
        answer = model(x[:3])
        assert (answer["batch"], answer["elements"]) == (3, [10])
    assert graphopt.analyze(result.graph, [[x]]).layers


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_of_the_graph_neither_counts_nor_changes(training: bool) -> None:
    graph = capture(Model(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(3)), images(2))
    wanted = graph(images(2))
    graph.train(training)
    text = str(graph)
    assert torch.equal(Executor(graph)(images(2)), wanted)
    with pytest.raises(ExecutionError):
        Executor(graph, overrides=dict.fromkeys(graph.calls(), torch.linalg.cholesky))(images(2))
    assert graph.training is training
    assert str(graph) == text


def test_in_training_mode_batch_norm_goes_by_the_batch() -> None:
    graph = capture(Model(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(3, affine=False)), images(2))
    found = Executor(graph, training=True)(images(4))
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_what_stands_behind_the_inputs_is_left_alone() -> None:
    graph, x = small(), torch.randn(3, 4)
    assert torch.equal(Executor(graph).run(graph.outputs, [x, torch.arange(3)])[graph.outputs[0]], graph(x))


# ---- Parts of it -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(PLAIN)))
def test_from_any_place_on_the_rest_gives_the_same(data: st.DataObject, name: str) -> None:
    torch.manual_seed(0)
    graph, x = capture(PLAIN[name](), images(2)), images(2)
    executor = Executor(graph)
    place = data.draw(st.sampled_from(graph.calls()))
    values = executor.inputs([x])
    for node in executor.walk(values, (), keep=graph.outputs):
        if node is place:
            for start in (node, None):
                found = executor.float_outputs(values, start=start)
                assert all(map(torch.equal, found, flat(graph(x))))
    alive = executor.alive(place)
    there = executor.run(alive, [x])
    again = executor.run(graph.outputs, {**there, **{n: values[n] for n in graph.outputs if n < place}}, start=place)
    assert all(map(torch.equal, executor.floating(again), flat(graph(x))))


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_no_more_is_computed_than_a_value_needs(name: str) -> None:
    graph = capture(PLAIN[name](), images(2))
    seen: list[Node] = []
    place = graph.calls()[len(graph.calls()) // 2]

    def counting(node: Node) -> Any:
        return lambda *args, **kwargs: (seen.append(node), node.target(*args, **kwargs))[1]  # type: ignore[operator, func-returns-value]

    Executor(graph, overrides={node: counting(node) for node in graph.calls()}).run([place], [images(2)])
    needed, todo = set[Node](), [place]
    while todo:
        node = todo.pop()
        needed |= {node} if node.op == "call_function" else set()
        todo += node.all_input_nodes
    assert seen == sorted(needed)


@pytest.mark.thorough
def test_values_are_let_go_of_behind_their_last_reader() -> None:
    graph = capture(nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))), torch.randn(2, 4))
    alive: list[weakref.ref[Tensor]] = []
    executor = Executor(graph)
    values = executor.inputs([torch.randn(2, 4)])
    for node in executor.walk(values, (), keep=graph.outputs):
        alive.append(weakref.ref(values[node]))
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2
        assert set(values) <= {node, *node.all_input_nodes}
    assert list(values) == graph.outputs


def test_a_value_put_in_on_the_way_counts_from_there_on() -> None:
    graph, x = small(), torch.randn(3, 4)
    executor = Executor(graph)
    values = executor.inputs([x])
    for node in executor.walk(values, (), keep=graph.outputs):
        if node.target is aten.relu.default:
            values[node] = torch.zeros_like(values[node])
    assert torch.equal(executor.nested(values), graph.parameter(node.args[2]).expand(3, -1))  # type: ignore[arg-type]


# ---- Changed ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_constants_are_exchanged_for_one_run_and_stay_in_the_graph() -> None:
    graph, x = small(), torch.randn(3, 4)
    before, other = graph(x), small()
    weight = graph.calls()[0].args[1]
    own = torch.randn(5, 4)
    other.put_constant(other.calls()[0].args[1], own)  # type: ignore[arg-type]
    assert torch.equal(Executor(graph, constants={weight: own})(x), other(x))  # type: ignore[dict-item]
    assert torch.equal(
        Executor(graph).run(graph.outputs, {weight: own, graph.inputs[0]: x})[graph.outputs[0]], other(x)
    )  # type: ignore[dict-item]
    assert torch.equal(graph(x), before)


def test_a_call_on_constants_may_be_given() -> None:
    graph = capture(Model(lambda m, x: x @ m.part.weight.T.abs(), part=nn.Linear(4, 4)), torch.randn(2, 4))
    last = max(constant_calls(graph.nodes))
    assert torch.equal(Executor(graph, constants={last: torch.eye(4)})(x := torch.randn(3, 4)), x)


def test_calls_are_overridden() -> None:
    graph, x = small(), torch.randn(3, 4)
    relu = graph.calls(aten.relu.default)[0]
    gelu = capture(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), x)
    gelu.load_state_dict(graph.state_dict())
    executor = Executor(graph, overrides={relu: torch.nn.functional.gelu})
    assert torch.equal(executor(x), gelu(x))
    assert torch.equal(executor.overriding({})(x), graph(x))


# ---- Gradients -------------------------------------------------------------------------------------------------------


def test_gradients_reach_leaves_inputs_and_constants_and_nothing_else() -> None:
    graph, x = small(), torch.randn(3, 4)
    relu = graph.calls(aten.relu.default)[0]
    weight: Any = graph.calls()[0].args[1]
    own = graph.tensor(weight).clone().requires_grad_()
    executor = Executor(graph, constants={weight: own}, leaves=[relu, graph.inputs[0]])
    found = executor.run([relu, graph.inputs[0], *graph.outputs], [x])
    loss = found[graph.outputs[0]].square().sum()
    slopes = torch.autograd.grad(loss, [found[relu], found[graph.inputs[0]], own])
    direct = graph.module(leaf := x.clone().requires_grad_()).square().sum()
    direct.backward()
    torch.testing.assert_close(slopes[1], leaf.grad)
    torch.testing.assert_close(slopes[2], graph.parameter(weight).grad)
    assert not x.requires_grad
    bias = graph.parameter(graph.calls()[-1].args[2])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(Executor(graph, leaves=[relu]).run(graph.outputs, [x])[graph.outputs[0]].sum(), bias)


def test_nothing_is_recorded_unless_asked_for() -> None:
    graph = small()
    with torch.enable_grad():
        assert not Executor(graph)(torch.randn(3, 4).requires_grad_()).requires_grad
    with torch.no_grad():
        assert Executor(graph, gradients=True)(torch.randn(3, 4).requires_grad_()).requires_grad
        assert not torch.is_grad_enabled()


def test_gradients_of_what_has_none_are_refused() -> None:
    graph = capture(Model(lambda m, x: (x.argmax(1), x)), torch.randn(2, 4))
    with pytest.raises(InputError, match=r"'argmax'.*no floating-point"):
        Executor(graph, leaves=graph.calls(aten.argmax.default))(torch.randn(2, 4))


# ---- Refused ---------------------------------------------------------------------------------------------------------


def test_a_call_that_fails_is_named() -> None:
    graph = capture(
        Model(lambda m, x: torch.linalg.cholesky(m.part(x) @ m.part(x).T), part=nn.Linear(3, 3)), torch.eye(3)
    )
    with pytest.raises(ExecutionError, match=r"\w*cholesky\w* at .* failed on tensors of shapes \[\[3, 3\]\]"):
        Executor(graph, constants={n: torch.zeros(3, 3) for n in graph.nodes if n.name == "part_weight"})(-torch.eye(3))


def test_inputs_that_do_not_fit_are_named() -> None:
    graph = capture(Model(lambda m, one, other: one + other), torch.randn(2, 4), torch.randn(2, 4))
    executor = Executor(graph)
    first, second = graph.input_names
    with pytest.raises(InputError, match=rf"takes 2 input tensors \({first}, {second}\), got 1"):
        executor.run(graph.outputs, [torch.randn(2, 4)])
    with pytest.raises(InputError, match=rf"'{second}' must be f32\[batch, 4\], got f32\[2, 5\]"):
        executor.run(graph.outputs, [torch.randn(2, 4), torch.randn(2, 5)])
    with pytest.raises(InputError, match=rf"'batch' is 2 by .* '{first}' and 3 by .* '{second}'"):
        executor.run(graph.outputs, [torch.randn(2, 4), torch.randn(3, 4)])
    with pytest.raises(InputError, match=rf"'{second}' is needed and not given"):
        executor.run(graph.outputs, {graph.inputs[0]: torch.randn(2, 4)})


def test_settled_constants_are_computed_once_until_they_may_change() -> None:
    x, seen = torch.randn(4, 3), list[Tensor]()
    graph = Graph.capture(nn.Linear(3, 2).eval(), x)
    layer = graph.calls(aten.linear.default)[0]
    weight = layer.args[1]
    assert isinstance(weight, Node)
    doubled = graph.call(aten.mul.Tensor, weight, 2.0, before=layer)
    layer.update_arg(1, doubled)
    graph.refresh()

    def double(weight: Tensor, factor: float) -> Tensor:
        seen.append(weight)
        return weight * factor

    executor = Executor(graph, overrides={doubled: double})
    settled = executor.settled()
    first = settled(x)
    assert torch.equal(settled(x), first)
    assert len(seen) == 1
    graph.put_constant(weight, torch.zeros(2, 3))
    assert torch.equal(settled(x), first)  # as it was told
    assert not torch.equal(executor.settled()(x), first)
    other = settled.overriding({doubled: lambda weight, factor: weight * 0 + 1})
    assert torch.equal(other(x), executor.overriding(other.overrides)(x))

"""Every factorization: exact at full rank, the same chain in numbers and in the graph, and better with data."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from blocks import target_of
from factorizations import APPLIES, C2, LAYERS, METHODS, captured, label, layer_in, low, pairs, small
from rewriting import Model, apply, assert_close, capture, names
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.ir import cost
from graphopt.ir.layer import Layer
from graphopt.passes.factorization import (
    CP,
    BlockTerm,
    ChannelWise,
    DepthwiseSeparable,
    Separable,
    StackedKernels,
    TensorTrain,
    Tucker,
)
from graphopt.passes.factorization.chain import Chain
from graphopt.passes.factorization.fitting import level
from graphopt.passes.factorization.method import Method
from graphopt.passes.factorization.modes import balanced


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_a_method_applies_to_the_layers_listed_and_to_no_others(method: Method) -> None:
    assert [name for name in LAYERS if method.refuses(layer_in(captured(name)[2])) is None] == APPLIES[type(method)]


@pytest.mark.parametrize(("method", "name"), pairs())
def test_it_is_exact_at_full_rank(method: Method, name: str) -> None:
    model, x, original = captured(name)
    before, graph = copy.deepcopy(model.state_dict()), original.clone()
    changes = apply(replace(method, rank=method.full(layer_in(original))), graph)
    assert [site for site, _ in changes] == ["0"]
    assert graph.dynamic_batch
    with torch.no_grad():
        for batch in (x, torch.cat([x, x.flip(0)]) * 0.7):
            assert_close(graph(batch), model(batch), 1e-9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert str(original) == str(captured(name)[2])


@pytest.mark.many
@pytest.mark.parametrize(("method", "name"), pairs())
def test_a_chain_computes_its_dense_weight_with_the_work_it_says(method: Method, name: str) -> None:
    model, x, original = captured(name)
    layer, graph = layer_in(original), original.clone()
    ranks = low(method, layer)
    chain = small(label(method), name)
    apply(replace(method, rank=ranks), graph)
    bias = {"0.bias"} if layer.bias is not None else set()
    assert dict(graph.named_parameters()).keys() == {f"0.{n}.weight" for n in range(len(chain.stages))} | bias
    whole = copy.deepcopy(model)
    whole[0].weight.data = layer.native(chain.dense())  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert_close(graph(x), whole(x), 1e-9)
        if layer.kind == "linear":
            bias_there = None if layer.bias is None else original.tensor(layer.bias)
            assert_close(chain.run(x, [stage.native for stage in chain.stages], bias_there), whole(x), 1e-9)
    assert chain.macs(layer) == method.skeleton(layer, ranks).macs(layer) == cost.macs(graph)
    assert Chain.whole(layer).macs(layer) == cost.macs(original)
    assert [w.shape for w in chain.weights] == [w.shape for w in method.skeleton(layer, ranks).weights]


@pytest.mark.parametrize(("method", "name"), pairs())
def test_scales_are_level_and_change_nothing(method: Method, name: str) -> None:
    layer = layer_in(captured(name)[2])
    if layer.groups > 1:
        return
    chain = small(label(method), name)
    features = chain.dense().flatten(1).shape[1]
    root = torch.randn(features, features, generator=torch.Generator().manual_seed(0)).double()
    metric = root @ root.T + torch.eye(features)
    for wanted in (None, metric):
        assert_close(level(chain, wanted).dense(), chain.dense(), 1e-9)
    leveled = level(chain, metric)
    first = Chain(leveled.stages[:1]).dense()
    if first.shape[2:] == chain.dense().shape[2:] and not chain.has_views:
        power = ((first.flatten(1) @ metric) * first.flatten(1)).sum(1)
        assert_close(power, torch.ones_like(power), 1e-6)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_every_factor_gets_a_gradient(method: Method) -> None:
    name = "linear" if "linear" in APPLIES[type(method)] else "conv2d reflect"
    _, x, original = captured(name)
    graph = original.clone()
    apply(replace(method, rank=low(method, layer_in(original))), graph)
    graph.train()
    graph(x).square().sum().backward()
    assert len(list(graph.parameters())) >= 3
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in graph.parameters())


# ---- In a graph -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_shared_weight_is_factorized_once_and_stays_shared() -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: F.conv2d(F.relu(m.conv(x)), m.conv.weight, stride=2) + m.conv.bias[:, None, None],
        conv=C2(6, 6, 5, padding=2),
    )
    x = torch.randn(2, 6, 9, 9)
    for method in (ChannelWise(), Separable(), Tucker(), CP(), DepthwiseSeparable(), StackedKernels()):
        graph = capture(model, x)
        full = method.full(layer_in(graph))
        assert len(apply(replace(method, rank=full), graph)) == 1
        assert_close(graph(x), model(x))
        stages = len(method.skeleton(layer_in(capture(model, x)), full).stages)
        assert sum(name.endswith("weight") for name, _ in graph.named_parameters()) == stages
        assert sum(name == "conv2d" for name in names(graph)) == 2 * stages


@pytest.mark.thorough
def test_a_shared_linear_layer_with_views_stays_shared() -> None:
    model = Model(lambda m, x: m.fc(F.relu(m.fc(x))) + m.fc(x.mean(1, keepdim=True)), fc=nn.Linear(16, 16))
    x = torch.randn(2, 5, 16)
    for method in (TensorTrain((16,)), BlockTerm(modes=2)):
        graph = capture(model, x)
        assert len(apply(replace(method, rank=method.full(layer_in(graph))), graph)) == 1
        assert_close(graph(x), model(x))
        assert names(graph).count("linear") == 3 * 2


def test_one_input_without_a_batch() -> None:
    model, x = nn.Linear(12, 18).eval(), torch.randn(12)
    for method in (TensorTrain(99), BlockTerm(99)):
        graph = capture(model, x, dynamic_batch=False)
        apply(replace(method, rank=method.full(layer_in(graph))), graph)
        assert_close(graph(x), model(x))


def test_modes_are_as_even_as_they_can_be() -> None:
    assert [balanced(n, 2) for n in (1024, 768, 10, 7, 1)] == [(32, 32), (24, 32), (2, 5), (1, 7), (1, 1)]
    assert [balanced(n, 3) for n in (1024, 1000, 18)] == [(8, 8, 16), (10, 10, 10), (2, 3, 3)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "tokens"), [(TensorTrain(0.5), (5,)), (BlockTerm(0.5), ())], ids=["TensorTrain", "BlockTerm"]
)
def test_tensor_stages_are_lowered_in_float_and_integer(method: Method, tokens: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    graph = capture(model, torch.randn(4, *tokens, 24))
    assert apply(method, graph)
    x, target = torch.randn(7, *tokens, 24), target_of("x86")
    with torch.no_grad():
        assert_close(lower(graph, target)(x), graph(x), 1e-5)
        data = [torch.randn(16, *tokens, 24) for _ in range(4)]
        result = graphopt.optimize(graph, target=target, calibration=data, measure=False)
        assert cost.sqnr(graph(x), result.artifact(x)) > 25
    left = [n for n in result.graph.calls() if Layer.of(n) and "fake_quantize" not in str(n.all_input_nodes[1].target)]
    assert left == []


# ---- With data ------------------------------------------------------------------------------------------------------


def correlated(count: int, *sizes: int, seed: int) -> Tensor:
    """Inputs most of whose power is in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(sizes[0], sizes[0], generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -2, sizes[0])
    return torch.einsum("nc...,dc->nd...", torch.randn(count, *sizes, generator=generator), mix)


@pytest.mark.many
@pytest.mark.parametrize("method", METHODS, ids=label)
def test_factors_of_data_answer_better_than_factors_of_weights(method: Method) -> None:
    torch.manual_seed(0)
    if "linear" in APPLIES[type(method)]:
        model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24, bias=False), nn.ReLU(), nn.Linear(24, 12))
        sizes: tuple[int, ...] = (24,)
    else:
        model = nn.Sequential(C2(4, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), C2(6, 5, 5, padding=2, bias=False))
        sizes = (4, 8, 8)
    model.eval()
    data, x = [[correlated(32, *sizes, seed=s)] for s in range(4)], correlated(32, *sizes, seed=10)
    errors = []
    for batches in (None, data):
        graph = capture(model, x)
        full = method.full(layer_in(graph))
        apply(replace(method, rank=tuple(max(1, r // 4) for r in full), data=batches), graph)
        with torch.no_grad():
            errors.append(float((graph(x) - model(x)).square().sum()))
    assert errors[1] < errors[0]


def test_grouped_and_shared_layers_keep_the_factors_of_their_weight() -> None:
    torch.manual_seed(0)
    model = Model(
        lambda m, x: m.shared(F.relu(m.shared(F.relu(m.grouped(x))))),
        grouped=C2(4, 8, 3, groups=2, padding=1), shared=C2(8, 8, 3, padding=1),
    )  # fmt: skip
    x = torch.randn(8, 4, 6, 6)
    found = []
    for data in (None, [[x]]):
        graph = capture(model, x)
        assert len(apply(Tucker(2, data=data), graph)) == 2
        found.append({n: p.detach() for n, p in graph.named_parameters() if n.endswith("weight")})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.thorough
def test_a_tensor_train_gets_the_bias_that_data_ask_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16)).eval()
    data = [[torch.rand(64, 16) + 1] for _ in range(4)]
    graph = capture(model, data[0][0])
    apply(TensorTrain(2, data=data), graph)
    assert "0.bias" in dict(graph.named_parameters())
    with torch.no_grad():
        apart = (graph(data[0][0]) - model(data[0][0])).mean(0)
    assert float(apart.abs().max()) < 0.05

"""One entry in the table of operators, and everything that treats operators by their traits knows the new one."""

from __future__ import annotations

import pytest
import torch
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.analysis.channels import ScaleGroups
from graphopt.analysis.channels.groups import groups
from graphopt.analysis.distributions import Distributions
from graphopt.analysis.intervals import Interval, extend
from graphopt.formats import FAKE_QUANTIZE
from graphopt.ir import ops
from graphopt.ir.graph import Graph
from graphopt.ir.ops import OpInfo, register
from graphopt.passes import Quantize
from graphopt.passes.cleanup import FoldBatchNorm, FoldConstantChannels
from graphopt.passes.factorization.nonlinear import Activation
from graphopt.passes.rounding.units import layer_units
from graphopt.targets import architecture, find


@torch.library.custom_op("graphopt_tests::leak", mutates_args=())
def leak(x: Tensor, slope: float = 0.25) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@leak.register_fake
def _(x: Tensor, slope: float = 0.25) -> Tensor:
    return torch.empty_like(x)


LEAK = torch.ops.graphopt_tests.leak.default
ENTRY = OpInfo("leak", pointwise=True, within_channels=True, homogeneous=True, monotone=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(LEAK(self.norm(self.a(x))))
        return found


class Ending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = LEAK(self.a(x))
        return found


def captured() -> tuple[Graph, torch.fx.Node]:
    graph = capture(Net(), torch.randn(2, 3, 8, 8))
    apply(FoldBatchNorm(), graph)
    (call,) = graph.calls(LEAK)
    return graph, call


@pytest.fixture(params=[False, True], ids=["unknown", "registered"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(ops, "_TABLE", dict(ops._TABLE))
    if request.param:
        register(LEAK, ENTRY)
    return bool(request.param)


def test_channels_are_scaled_through_it(known: bool) -> None:
    channels = ScaleGroups.of(captured()[0])
    assert bool(channels.pinned[channels.writes[0].labels].all()) != known


def test_channels_are_removed_through_it(known: bool) -> None:
    graph, _ = captured()
    assert any(len(group.free) == 8 for group in groups(graph)) == known


def test_intervals_go_through_it(known: bool) -> None:
    graph, call = captured()
    found = {call.args[0]: Interval(torch.full((8,), -4.0).double(), torch.full((8,), 2.0).double())}
    extend(graph, call, found)
    assert (call in found) == known
    if known:
        assert (found[call].low.unique().item(), found[call].high.unique().item()) == (-1.0, 2.0)


def test_distributions_go_through_it(known: bool) -> None:
    graph, call = captured()
    assert (call in Distributions.of(graph).known) == known


def test_constant_channels_are_folded_through_it(known: bool) -> None:
    graph, _ = captured()
    layer, reader = graph.calls(torch.ops.aten.conv2d.default)
    weight = graph.tensor(layer.args[1]).clone()
    weight[3] = 0
    graph.set_constant(layer, 1, weight)
    inputs = graph.example.args[0]
    before = graph(inputs)
    apply(FoldConstantChannels(), graph)
    assert bool((graph.tensor(reader.args[1])[:, 3] == 0).all()) == known
    assert torch.allclose(graph(inputs), before, atol=1e-5)


def test_factors_are_fitted_through_it(known: bool) -> None:
    graph, _ = captured()
    layer = graph.calls(torch.ops.aten.conv2d.default)[0]
    assert (Activation.behind(graph, layer, 8) is not None) == known


@pytest.mark.parametrize(("target", "tables"), [("arm", False), ("tvm-x86", True)])
def test_its_result_is_integer_where_the_runtime_has_tables(known: bool, target: str, tables: bool) -> None:
    graph = capture(Ending(), torch.randn(2, 3, 8, 8))
    apply(Quantize(find(target), [[graph.example.args[0]]]), graph)
    assert (graph.outputs[0].target is FAKE_QUANTIZE) == (known and tables)


def test_rounding_is_learned_behind_it(known: bool) -> None:
    graph, call = captured()
    apply(Quantize(find("tvm-x86"), [[graph.example.args[0]]]), graph)
    first = layer_units(graph)[0]
    assert (call in first.nodes) == known


@pytest.mark.thorough
@pytest.mark.skipif(architecture() != "x86_64", reason="kernels of x86")
def test_a_table_computes_it_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setattr(ops, "_TABLE", dict(ops._TABLE))
    register(LEAK, ENTRY)
    from graphopt.backends.tvm.lowering import lower

    graph, _ = captured()
    x = torch.randn(2, 3, 8, 8)
    apply(Quantize(find("tvm-x86"), [[x]]), graph)
    artifact = lower(graph, find("tvm-x86"))  # which has no kernel for it in float
    assert torch.equal(graphopt.simulate(graph, "tvm-x86")(x), torch.as_tensor(artifact(x)))

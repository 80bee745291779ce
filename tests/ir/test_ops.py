"""What a layer's view says about its weight, held against the operator itself; and operators of others in the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewriting import assert_close, capture
from torch import Tensor, nn

from graphopt.ir import ops
from graphopt.ir.calls import argument, set_argument
from graphopt.ir.graph import Graph
from graphopt.ir.layer import WEIGHT, BatchNorm, Layer, Pool
from graphopt.ir.ops import OpInfo, info, register, registered
from graphopt.ir.quantizers import UniformQuantizer
from graphopt.ir.rules import Rules
from graphopt.passes import Quantize
from graphopt.targets import find
from graphopt.utils.errors import InputError

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv": nn.Conv2d(6, 4, 3),
    "conv of one dimension": nn.Conv1d(6, 4, 3),
    "grouped conv": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise conv": nn.Conv2d(6, 6, 3, groups=6),
    "depthwise conv with a multiplier": nn.Conv2d(6, 12, 3, groups=6),
    "transposed conv": nn.ConvTranspose2d(6, 4, 3),
    "grouped transposed conv": nn.ConvTranspose2d(6, 4, 3, groups=2),
    "depthwise transposed conv": nn.ConvTranspose2d(6, 12, 3, groups=6),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def captured(name: str) -> tuple[Graph, Layer, Tensor]:
    dims = LAYERS[name].weight.dim() - 2
    graph = capture(LAYERS[name], torch.randn(2, 6, *[9] * dims))
    (layer,) = (found for node in graph.calls() if (found := Layer.of(node)))
    return graph, layer, graph.example.tensors()[0]


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.dim() - 2))


@every_layer
def test_scaling_input_channels_is_scaling_what_the_outputs_read(name: str) -> None:
    graph, layer, x = captured(name)
    factors = torch.rand(layer.in_channels) + 0.5
    expected = graph(x * along_channels(factors, x))
    weight = layer.canonical(graph.tensor(layer.weight))
    assert layer.over_inputs(factors).shape == (*weight.shape[:2], *[1] * layer.dims)
    graph.set_constant(layer.node, WEIGHT, layer.native(weight * layer.over_inputs(factors)))
    graph.refresh()
    assert_close(graph(x), expected, 1e-5)


@every_layer
def test_scaling_output_channels_is_scaling_the_rows_of_the_weight(name: str) -> None:
    graph, layer, x = captured(name)
    factors = torch.rand(layer.out_channels) + 0.5
    bias = graph.tensor(layer.bias)
    expected = (graph(x) - along_channels(bias, x)) * along_channels(factors, x) + along_channels(bias, x)
    weight = layer.canonical(graph.tensor(layer.weight))
    graph.set_constant(layer.node, WEIGHT, layer.native(weight * layer.over_outputs(factors)))
    graph.refresh()
    assert_close(graph(x), expected, 1e-5)


@every_layer
def test_the_response_to_a_constant_input_is_the_output_away_from_the_border(name: str) -> None:
    graph, layer, x = captured(name)
    constant = torch.randn(layer.in_channels)
    output = graph(torch.zeros_like(x) + along_channels(constant, x))
    middle = output[(0, slice(None), *[size // 2 for size in output.shape[2:]])]
    response = layer.respond(layer.canonical(graph.tensor(layer.weight)), constant)
    assert_close(response + graph.tensor(layer.bias), middle, 1e-5)


def test_a_vector_that_does_not_count_the_inputs_is_refused() -> None:
    _, layer, _ = captured("grouped conv")
    with pytest.raises(RuntimeError):
        layer.over_inputs(torch.ones(8))


def test_flags_of_channels_stay_flags() -> None:
    _, layer, _ = captured("grouped conv")
    chosen = layer.over_inputs(torch.tensor([True, False, False, False, False, True]))
    assert chosen.squeeze().tolist() == [[True, False, False]] * 2 + [[False, False, True]] * 2


# ---- The table ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_TABLE", dict(ops._TABLE))


MISH = OpInfo("mish", pointwise=True, within_channels=True)


def test_a_registered_operator_has_its_traits() -> None:
    graph = capture(nn.Mish(), torch.randn(2, 3))
    (call,) = graph.calls()
    assert info(call) == ops.UNKNOWN
    register(call.target, MISH)
    register(call.target, MISH)
    assert info(call) == MISH
    assert registered(lambda known: known.family == "mish") == {call.target: MISH}


def test_an_operator_has_one_entry() -> None:
    with pytest.raises(InputError, match=r"aten\.relu\.default is registered already, as .*'relu'"):
        register(torch.ops.aten.relu.default, MISH)


@pytest.mark.parametrize(
    "wrong",
    [
        OpInfo("celu", training_flag="train"),
        OpInfo("celu", pointwise=True, within_channels=True, monotone=True, fusable=True, clips=("train", 1.0)),
    ],
)
def test_arguments_that_an_entry_names_are_the_operators(wrong: OpInfo) -> None:
    with pytest.raises(InputError, match="has no argument 'train'; it has self, alpha"):
        register(torch.ops.aten.celu.default, wrong)


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"pointwise": True}, "pointwise, so it is within_channels"),
        ({"moves": True, "homogeneous": True, "monotone": True}, "moves, so it selects"),
        ({"selects": True}, "selects, so it is monotone"),
        ({"fusable": True, "pointwise": True, "within_channels": True}, "fusable, so it is pointwise and monotone"),
        ({"clips": (0.0, 1.0)}, "clips, so it is fusable"),
        ({"range": (0.0, float("inf"))}, "both ends are finite"),
    ],
)
def test_traits_do_not_deny_each_other(traits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OpInfo("odd", **traits)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_training_flags_are_switched_and_switched_back(make: Any, always: bool) -> None:
    model = make(3, track_running_stats=not always)
    graph = capture(model, torch.randn(2, 3, 4, 4))
    call = next(n for n in graph.calls() if info(n).training_flag)
    flag = info(call).training_flag
    seen = [argument(call, flag), argument(graph.train() and call, flag), argument(graph.eval() and call, flag)]
    assert seen == [always, True, always]


def test_an_argument_is_set_where_it_was_written() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for call in (graph.call_function(torch.ops.aten.leaky_relu.default, (x, 0.5)),
                 graph.call_function(torch.ops.aten.leaky_relu.default, (x,), {"negative_slope": 0.5}),
                 graph.call_function(torch.ops.aten.leaky_relu.default, (x,))):  # fmt: skip
        set_argument(call, "negative_slope", 0.25)
        assert argument(call, "negative_slope") == 0.25
        assert len(call.args) + len(call.kwargs) == 2


def test_a_rule_of_an_operator_goes_before_its_familys() -> None:
    rules: Rules[str] = Rules("interval")
    rules.of("clamp", "relu")("family")
    rules.of(torch.ops.aten.relu6.default)("operator")
    graph = capture(nn.Sequential(nn.ReLU(), nn.Hardtanh(-2, 2), nn.Sigmoid()), torch.randn(2, 3))
    assert [rules.find(node) for node in graph.calls()] == ["family", "family", None]
    relu6 = torch.fx.Graph().call_function(torch.ops.aten.relu6.default)
    assert rules.find(relu6) == "operator"
    with pytest.raises(InputError, match="relu has a rule already: family"):
        rules.of("relu")("another")


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_names_its_constants(affine: bool) -> None:
    model = nn.BatchNorm2d(3, eps=0.25, affine=affine)
    graph = capture(model, torch.randn(2, 3, 4, 4))
    norm = BatchNorm.of(graph.calls()[-1])
    assert norm is not None
    assert [str(node.target) if node else None for node in (norm.weight, norm.bias, norm.mean, norm.var)] == [
        "weight" if affine else None, "bias" if affine else None, "running_mean", "running_var",
    ]  # fmt: skip
    assert norm.eps == 0.25


POOLS: list[tuple[nn.Module, tuple[Any, ...]]] = [
    (nn.MaxPool1d(3), ("max_pool", (3,), (3,), (0,), (1,), False, False)),
    (nn.MaxPool2d(3, (1, 2), 1, 2, ceil_mode=True), ("max_pool", (3, 3), (1, 2), (1, 1), (2, 2), True, False)),
    (nn.AvgPool2d((2, 3)), ("average_pool", (2, 3), (2, 3), (0, 0), (1, 1), False, True)),
    (nn.AvgPool1d(4, 2, 1, count_include_pad=False), ("average_pool", (4,), (2,), (1,), (1,), False, False)),
]


@pytest.mark.parametrize(("model", "expected"), POOLS)
def test_a_pool_names_its_arguments(model: nn.Module, expected: tuple[Any, ...]) -> None:
    dims = len(expected[1])
    graph = capture(model, torch.randn(2, 3, *[9] * dims))
    (pool,) = (found for node in graph.calls() if (found := Pool.of(node)))
    assert (
        pool.kind, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.rounds_up, pool.includes_padding
    ) == expected  # fmt: skip


def test_an_adaptive_pool_has_no_windows() -> None:
    graph = capture(nn.AdaptiveAvgPool2d(2), torch.randn(2, 3, 9, 9))
    assert [Pool.of(node) for node in graph.calls()] == [None]


def test_a_quantizer_names_its_arguments() -> None:
    graph = capture(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6))
    Quantize(find("arm"), [[torch.randn(2, 3, 6, 6)]])(graph)
    (layer,) = (found for node in graph.calls() if (found := Layer.of(node)))
    grid = UniformQuantizer.of(layer.weight)
    assert grid is not None
    assert [str(n.target) for n in (grid.value, grid.scale, grid.zero_point)] == [
        "weight", "weight_scale", "weight_zero_point",
    ]  # fmt: skip
    assert (grid.low, grid.high, grid.axis, grid.block) == (*layer.weight.args[3:6], ())
    assert UniformQuantizer.of(layer.node) is None

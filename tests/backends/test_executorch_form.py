"""The quantized form that XNNPACK takes, and the program that is made of it: neither needs ExecuTorch."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from blocks import images
from rewriting import Model, apply, capture
from torch import nn
from xnnpack_networks import INTEGER, MIXED, network

from graphopt.backends.executorch.compiling import _origin
from graphopt.backends.executorch.form import legalize
from graphopt.backends.executorch.lowering import check_graph, formed
from graphopt.backends.executorch.programs import exported
from graphopt.formats import Format
from graphopt.ir.facts import LEFT
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten, family, info
from graphopt.lowering.integers.fusion import DEQUANTIZE, QUANTIZE
from graphopt.lowering.integers.legalize import is_dequantized
from graphopt.lowering.qdq import Q, QuantizationParameters
from graphopt.passes.quantization import Quantize
from graphopt.targets import Target, find
from graphopt.utils.errors import InputError

TARGET = find("executorch")
QUICK = ("residual", "concat", "pad", "hard swish")
NETWORKS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough) for name in INTEGER | MIXED]


def quantized(model: nn.Module, *inputs: torch.Tensor, target: Target = TARGET) -> Graph:
    graph = capture(model, *inputs)
    apply(Quantize(target, [[*inputs]], estimator="minmax"), graph)
    return graph


def form_of(model: nn.Module, *inputs: torch.Tensor, target: Target = TARGET) -> Graph:
    return formed(quantized(model.eval(), *inputs, target=target), len(inputs[0]))


def grid(graph: Graph, number: int) -> QuantizationParameters:
    return QuantizationParameters.of(graph.calls(QUANTIZE)[number])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_form_answers_what_the_graph_answers(name: str) -> None:
    """But for halves, which fall to another side where a scale is multiplied by: a step of the result at most."""
    model, inputs = network(name)
    graph = quantized(model, *inputs)
    form = formed(graph, 8)
    ours, theirs = (torch.utils._pytree.tree_leaves(g(*inputs)) for g in (form, graph))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=float(other.detach().abs().max()) / 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_answers_what_the_form_answers(name: str) -> None:
    model, inputs = network(name)
    form = formed(quantized(model, *inputs), 8)
    program, written = exported(form)
    answers = program.module()(*inputs)
    for mine, other in zip(answers, torch.utils._pytree.tree_leaves(form(*inputs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=float(other.detach().abs().max()) / 64)
    calls = {node.name for node in written.calls()}
    assert all(_origin(node) in calls for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_reader_is_fused_with_is_its_own(name: str) -> None:
    """In a program every dequantized value has one reader, every code a byte, and weights alone are dequantized constants."""
    model, inputs = network(name)
    program, _ = exported(formed(quantized(model, *inputs), 8))
    for node in program.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE):
            assert node.args[3:] == (-128, 127, torch.int8)
            assert node.target is QUANTIZE or len(node.users) == 1
        if node.target is Q.dequantize_per_channel.default:
            assert node.args[3:] == (0, -127, 127, torch.int8)


def test_unsigned_codes_move_down() -> None:
    """Those of a graph that was quantized for x86 are the same values on a signed grid."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    form = form_of(model, images(4), target=find("x86").replace(float_output=frozenset()))
    for node in form.calls(QUANTIZE, DEQUANTIZE):
        assert QuantizationParameters.of(node).dtype == torch.int8
    assert grid(form, 1).zero_point == -128
    assert all(is_dequantized(layer.weight) for node in form.calls() if (layer := Layer.of(node)))


def test_a_scale_for_the_whole_weight_is_one_for_each_channel() -> None:
    form = form_of(nn.Conv2d(3, 4, 3), images(4), target=TARGET.replace(weights=Format(8)))
    (weight,) = (node for node in form.calls(Q.dequantize_per_channel.default) if node.args[-1] is torch.int8)
    scale: Any = weight.args[1]
    assert form.tensor(scale).shape == (4,)
    assert form.tensor(scale).unique().numel() == 1


def codes_of(x: torch.Tensor, scale: float) -> torch.Tensor:
    found: torch.Tensor = Q.quantize_per_tensor.default(x, scale, 3, -128, 127, torch.int8)
    return found


def on_grid(x: torch.Tensor, scale: float) -> torch.Tensor:
    found: torch.Tensor = Q.dequantize_per_tensor.default(codes_of(x, scale), scale, 3, -128, 127, torch.int8)
    return found


class Layers(nn.Module):
    """A layer of codes whose result is clipped and rounded to steps of any size."""

    def __init__(self, step: float, low: float, high: float) -> None:
        super().__init__()
        self.step, self.low, self.high = step, low, high
        self.register_buffer("codes", torch.randint(-127, 128, (4, 3), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(4) / 100)
        self.register_buffer("zero", torch.zeros(4, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stored = (self.codes, self.scale, self.zero, 0, -127, 127, torch.int8)
        y = nn.functional.linear(on_grid(x, 0.02), Q.dequantize_per_channel.default(*stored))
        return on_grid(y.clamp(self.low, self.high), self.step)


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(-0.05, 0.1, (-2, 13)), (-9.0, 0.1, (-128, 13)), (0.0, 9.0, (3, 127))]
)
def test_clips_are_ends_of_codes(low: float, high: float, ends: tuple[int, int]) -> None:
    """Wherever they are; and in the program a clip in front of rounding again, which the kernel is fused with."""
    model, x = Layers(0.01, low, high).eval(), torch.randn(6, 3)
    graph = Graph.capture(model, x, dynamic_batch=False)
    legalize(graph)
    last = grid(graph, 1)
    assert (last.quant_min, last.quant_max) == ends
    assert not [node for node in graph.calls() if info(node).fusable]
    assert torch.equal(graph(x), model(x))
    program, _ = exported(graph)
    assert torch.equal(program.module()(x)[0], model(x))
    (clip,) = (node for node in program.graph.nodes if info(node).fusable)
    assert clip.target is (aten.relu.default if ends == (3, 127) else aten.hardtanh.default)


def test_a_layer_whose_steps_are_too_large_says_so_and_computes_in_float() -> None:
    model, x = Layers(1e-7, -9, 9).eval(), torch.randn(6, 3)
    graph = Graph.capture(model, x, dynamic_batch=False)
    legalize(graph)
    (layer,) = (layer for node in graph.calls() if (layer := Layer.of(node)) is not None)
    assert "steps of its result, and kernels take less than 256" in str(graph.fact(layer.node, LEFT))
    assert graph.is_constant(layer.weight)
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("operator", [torch.add, torch.sub, torch.mul])
def test_sums_and_products_of_steps_that_the_library_refuses_compute_in_float(operator: Any) -> None:
    class Join(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return on_grid(operator(on_grid(x, 0.02), on_grid(y, 1e-6)), 0.05)

    x, y = torch.randn(4, 5), torch.randn(4, 5)
    graph = Graph.capture(Join().eval(), (x, y), dynamic_batch=False)
    legalize(graph)
    (join,) = (node for node in graph.calls() if family(node) in ("add", "sub", "mul"))
    assert "steps of its result, and kernels take" in str(graph.fact(join, LEFT))
    assert not is_dequantized(join.args[0])
    assert torch.equal(graph(x, y), Join()(x, y))


@pytest.mark.parametrize(
    "move", [lambda x: torch.cat([x, x]), lambda x: x.t(), lambda x: x[:, :2], lambda x: x.flatten()]
)
def test_what_moves_codes_does_so_on_the_grid_of_its_result(move: Any) -> None:
    class Move(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return on_grid(move(on_grid(x, 0.02)), 0.05)

    x = torch.randn(4, 5)
    graph = Graph.capture(Move().eval(), x, dynamic_batch=False)
    legalize(graph)
    (found,) = (node for node in graph.calls() if node.target not in (QUANTIZE, DEQUANTIZE))
    (source,) = set(found.all_input_nodes)
    assert source.args[1] == next(iter(found.users)).args[1] == 0.05
    assert torch.equal(graph(x), Move()(x))


def test_weights_that_leave_the_codes_around_zero_stay_float() -> None:
    form = quantized(nn.Conv2d(3, 4, 3).eval(), images(4), target=TARGET.replace(weights=Format(8, symmetric=False)))
    prepared = formed(form, 4)
    (layer,) = (layer for node in prepared.calls() if (layer := Layer.of(node)) is not None)
    assert "around their zero points" in str(prepared.fact(layer.node, LEFT))
    assert prepared.is_constant(layer.weight)


def test_means_of_images_are_pools_whatever_they_are_written_as() -> None:
    for mean in (
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1),
    ):
        model = Model(lambda m, x, mean=mean: mean(m.a(x)).flatten(1), a=nn.Conv2d(3, 4, 3))
        program, _ = exported(form_of(model, images(4)))
        (found,) = (node for node in program.graph.nodes if node.target is aten.mean.dim)
        assert found.args[1:] == ([2, 3], True)


def test_codes_of_more_than_a_byte_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="codes are int16, and XNNPACK's kernels take int8; quantize values to 8 bits"):
        form_of(nn.Conv2d(3, 4, 3), images(4), target=TARGET.replace(activations=Format(16, symmetric=False)))


def test_what_no_program_can_hold_is_refused_before_any_work() -> None:
    free = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4, max=64)}}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.conv(x)
            return found

    with pytest.raises(InputError, match=r"dimension 2 of input 'x' \('height'\) is free, and programs of ExecuTorch"):
        check_graph(Graph.capture(Net().eval(), images(2), dynamic_shapes=free))
    with pytest.raises(InputError, match=r"is float64, and XNNPACK computes in float32; .*\.float\(\)"):
        check_graph(Graph.capture(nn.Linear(3, 2).double().eval(), torch.zeros(2, 3).double()))
    with pytest.raises(InputError, match="no kernel for convolutions over 3 dimensions"):
        check_graph(Graph.capture(nn.Conv3d(1, 2, 3).eval(), torch.zeros(2, 1, 4, 4, 4)))


def test_the_form_of_a_form_is_itself() -> None:
    model, inputs = network("concat")
    form = formed(quantized(model, *inputs), 8)
    before = str(form)
    legalize(form)
    assert str(form) == before


@pytest.mark.parametrize("module", ["backend", "artifact", "lowering", "programs", "running", "runtime", "simulate"])
def test_every_module_is_imported_without_the_runtime(module: str) -> None:
    importlib.import_module(f"graphopt.backends.executorch.{module}")


def test_the_backend_says_what_it_does() -> None:
    backend = importlib.import_module("graphopt.backends.executorch.backend").BACKEND
    assert backend.name == "executorch"

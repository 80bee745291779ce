"""Biases lie on the grid of the sums they are added to, whoever moves or trains the scales; what does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from capture_once import capture_once
from torch import Tensor, nn
from torch.fx.node import Node

import graphopt
from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir.calls import operand
from graphopt.ir.facts import BIAS_CORRECTED
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.ops import aten
from graphopt.ir.quantizers import SCALE, bias_quantizer, is_scale_expression, quantizer_of
from graphopt.ir.scales import set_scale
from graphopt.lowering.qdq import deploy
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passmanager.runner import run
from graphopt.targets import Target, find, machine_here
from graphopt.utils.errors import InputError

X86 = find("x86").replace(weights=Format(7, per_channel=True))  # with 8 bits, pairs of products may saturate
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES = [[part] for part in X.split(4)]
LAYERS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
    ),
    "linear": lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)),
}  # fmt: skip


def quantized(name: str = "convolutions", target: Target = X86, **options: Any) -> Graph:
    torch.manual_seed(0)
    graph = capture_once(LAYERS[name]().eval(), X[:2])
    run([Quantize(target, BATCHES, **options)], graph, verify=False)
    return graph


def layers(graph: Graph) -> list[Layer]:
    return [layer for node in graph.calls() if (layer := Layer.of(node))]


def scales(graph: Graph) -> list[Node]:
    """The constants among the scales."""
    found = [operand(q, SCALE) for q in graph.calls(FAKE_QUANTIZE)]
    return list(dict.fromkeys(s for s in found if graph.is_constant(s)))


def held(graph: Graph) -> None:
    """Every bias is on its grid to the last bit."""
    for layer in layers(graph):
        bias = bias_quantizer(layer)
        assert bias is not None
        product = graph.tensor(operand(layer.input, SCALE)) * graph.tensor(operand(layer.weight, SCALE))
        assert torch.equal(graph.tensor(bias.scale), product)


def integer(graph: Graph, runtime: str = "x86") -> None:
    """Every layer computes in integers, and the artifact answers what the simulation of its kernels on this machine does."""
    result = graphopt.optimize(graph, target=runtime, calibration=BATCHES, measure=False)
    assert result.report.integer_macs == 1.0
    machine = None if runtime.startswith("tvm") else machine_here()  # TVM's kernels compute alike on every CPU
    assert torch.equal(result.artifact(X), graphopt.simulate(result.graph, target=runtime, machine=machine)(X))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weights", [Format(7, per_channel=True), Format(7)], ids=["per channel", "per tensor"])
def test_the_scale_of_a_bias_follows_those_of_input_and_weight(name: str, weights: Format) -> None:
    graph = quantized(name, weights=weights)
    held(graph)
    for factor, constant in zip((1.25, 0.75, 1.5, 0.875), scales(graph), strict=False):
        graph.put_constant(constant, graph.tensor(constant) * factor)
        held(graph)
    graph.refresh()
    integer(graph)


def test_the_expression_is_printed_saved_and_left_alone_by_cleaning(tmp_path: Path) -> None:
    graph = quantized()
    assert str(graph).count("= mul(f32[], f32[6]) : f32[6]") == 2
    graph.save(tmp_path / "g")
    loaded = Graph.load(tmp_path / "g")
    Simplify()(loaded)
    loaded.refresh()
    assert str(loaded) == str(graph)
    assert sum(map(is_scale_expression, loaded.calls(aten.mul.Tensor))) == 3
    held(loaded)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "transform",
    [
        RefineRanges(BATCHES, evaluations=25, weights=True),
        LearnRounding(BATCHES),
        LearnRounding(BATCHES, method="adaround", iterations=5, batch=4),
        LearnRounding(BATCHES, method="adaquant", unit="layer", iterations=5, batch=4),
        CorrectBias(BATCHES),
    ],
    ids=["RefineRanges", "gptq", "adaround", "adaquant", "CorrectBias"],
)
def test_passes_that_move_scales_keep_layers_integer(transform: Any) -> None:
    graph = quantized(weights=Format(4, per_channel=True))
    before = [graph.tensor(s).clone() for s in scales(graph)]
    assert transform(graph)
    graph.refresh()
    moved = [not torch.equal(a, graph.tensor(s)) for a, s in zip(before, scales(graph), strict=True)]
    assert any(moved) == (not isinstance(transform, CorrectBias))
    held(graph)
    integer(graph)


BITS = [Format(8, per_channel=True), Format(4, per_channel=True), Format(8), Format(4)]


def train(graph: Graph) -> list[Node]:
    """Three steps of an optimizer on every scale; the constants that hold them."""
    wanted = graph(X).detach() * 1.3
    constants = scales(graph)
    optimizer = torch.optim.Adam([graph.parameter(s).requires_grad_() for s in constants], lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        (graph(X) - wanted).square().mean().backward()
        optimizer.step()
    return constants


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weights", BITS, ids=["8 bits", "4 bits", "8 bits per tensor", "4 bits per tensor"])
@pytest.mark.parametrize("runtime", ["x86", "arm", "tvm-x86"])
def test_scales_trained_by_an_optimizer_keep_layers_integer(runtime: str, weights: Format, name: str) -> None:
    graph = quantized(name, find(runtime), weights=weights)
    before = {s: graph.tensor(s).clone() for s in scales(graph)}
    assert train(graph) == list(before)
    assert not any(torch.equal(graph.tensor(s), old) for s, old in before.items())
    held(graph)
    integer(graph, runtime)


@pytest.mark.thorough
def test_a_copy_and_a_file_of_a_trained_graph_keep_its_answers_and_can_be_trained_on(tmp_path: Path) -> None:
    graph = quantized()
    train(graph)
    graph.save(tmp_path / "g")
    copies = [graph.clone(), Graph.load(tmp_path / "g")]
    answers = graph(X).detach()
    for copy in copies:
        assert torch.equal(copy(X), answers)
        train(copy)
        held(copy)
        integer(copy)
    assert torch.equal(graph(X), answers)  # its scales are its own


@pytest.mark.thorough
def test_the_scale_of_an_input_learns_from_the_bias_too() -> None:
    graph = quantized("linear")
    first = layers(graph)[0]
    bias = bias_quantizer(first)
    assert bias is not None
    scale = graph.parameter(operand(first.input, SCALE)).requires_grad_()
    product = scale * graph.tensor(operand(first.weight, SCALE))
    value = FAKE_QUANTIZE(graph.tensor(bias.value), product, graph.tensor(bias.zero_point), *bias.node.args[3:])
    (gradient,) = torch.autograd.grad(value.sum(), scale)
    assert bool(gradient.isfinite())


@pytest.mark.thorough
def test_a_scale_that_two_layers_share_is_parted_where_one_of_them_gets_another() -> None:
    graph = quantized("linear", weights=Format(8))
    first, second = layers(graph)
    shared, bias = operand(first.weight, SCALE), bias_quantizer(second)
    assert bias is not None
    bias.scale.replace_input_with(operand(second.weight, SCALE), shared)
    second.weight.update_arg(1, shared)
    before = graph.tensor(shared).clone()
    set_scale(graph, first.weight, before * 2)
    graph.refresh()
    assert torch.equal(graph.tensor(operand(first.weight, SCALE)), before * 2)
    assert torch.equal(graph.tensor(operand(second.weight, SCALE)), before)
    held(graph)


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["x86", "arm", "tvm-x86"])
def test_a_bias_on_another_grid_is_refused_by_name(runtime: str) -> None:
    graph = quantized()
    bias = bias_quantizer(layers(graph)[1])
    assert bias is not None
    scale = graph.tensor(bias.scale)
    scale[2] *= 1 + 2**-20
    bias.node.update_arg(1, graph.add_constant("fixed", scale, before=bias.node))
    graph.refresh()
    with pytest.raises(
        InputError, match=r"the bias of '2' has the scale .* in place of .*: it has to be that of the input"
    ):
        graphopt.optimize(graph, target=runtime, calibration=BATCHES, measure=False)


@pytest.mark.thorough
def test_a_bias_with_another_number_of_scales_is_refused() -> None:
    graph = quantized()
    bias = bias_quantizer(layers(graph)[0])
    assert bias is not None
    bias.node.update_arg(1, graph.add_constant("one", graph.tensor(bias.scale)[:1].clone(), before=bias.node))
    with pytest.raises(InputError, match=r"the bias of '0' has scales \[1\], its weight \[6\]"):
        deploy(graph)


def test_a_float_bias_among_integer_ones_is_refused() -> None:
    graph = quantized()
    layer = layers(graph)[2]
    assert layer.bias is not None
    graph.replace(layer.bias, layer.bias.args[0])  # type: ignore[arg-type]
    graph.refresh()
    with pytest.raises(InputError, match=r"the bias of '4' is float, while its weight and input .* are integer"):
        deploy(graph)


def test_float_biases_stay_where_the_hardware_wants_them() -> None:
    graph = quantized(target=X86.replace(float_bias=True))
    assert not any(bias_quantizer(layer) for layer in layers(graph))
    deploy(graph)


@pytest.mark.thorough
def test_a_constant_of_the_same_value_will_do() -> None:
    graph = quantized()
    for layer in layers(graph):
        bias = bias_quantizer(layer)
        assert bias is not None
        bias.node.update_arg(1, graph.add_constant("scale", graph.tensor(bias.scale), before=bias.node))
    graph.refresh()
    assert torch.equal(deploy(graph)(X), deploy(quantized())(X))


@pytest.mark.thorough
def test_what_an_input_leads_to_is_no_constant() -> None:
    graph = quantized()
    with pytest.raises(InputError, match="is no constant: inputs of the graph lead to it"):
        graph.tensor(graph.calls(aten.relu.default)[0])
    with pytest.raises(InputError, match="no number format of 2 to 16 bits"):
        quantizer_of(graph, layers(graph)[0].bias)  # type: ignore[arg-type]


# ---- Optimizing twice -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("knows", "options"),
    [
        ("as it is", {}),
        ("from a file", {}),
        ("having forgotten", {}),
        ("trained", {}),
        ("as it is", {"max_drop": 1.0, "evaluate": lambda answers: 1.0}),
    ],
    ids=["as it is", "from a file", "having forgotten", "trained", "by the ladder"],
)
def test_a_quantized_graph_keeps_its_answers_when_it_is_optimized_again(
    knows: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = LAYERS["convolutions"]().eval()
    graph = graphopt.optimize(model, X[:2], target=X86, calibration=BATCHES, measure=False).graph
    if knows == "from a file":
        graph.save(tmp_path / "g")
        graph = Graph.load(tmp_path / "g")
    if knows == "having forgotten":
        for node in graph.calls():
            node.meta.pop(BIAS_CORRECTED.name, None)
    if knows == "trained":
        train(graph)
        for parameter in graph.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    first = graphopt.optimize(graph, target="x86", calibration=BATCHES, measure=False, **options)
    second = graphopt.optimize(first.graph, target="x86", calibration=BATCHES, measure=False, **options)
    assert str(first.graph) == str(second.graph) == str(graph)
    for copy in (first.graph, second.graph):
        assert all(
            torch.equal(a, b) for a, b in zip(graph.state_dict().values(), copy.state_dict().values(), strict=True)
        )
    answers: Tensor = graphopt.simulate(graph, target="x86", machine=machine_here())(X)
    assert torch.equal(first.artifact(X), answers)
    assert torch.equal(second.artifact(X), answers)

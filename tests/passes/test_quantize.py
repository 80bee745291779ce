"""Where quantizers go, what they refuse, and that simulation, deployment and ONNX Runtime answer alike."""

from __future__ import annotations

import copy
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, conv, images, lowered, model_of, simulated, target_of
from rewriting import Model, apply, capture, names
from torch import Tensor, nn

from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.ir.passes import Change
from graphopt.lowering.qdq import deploy
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.targets import find
from graphopt.utils.errors import InputError, NonFiniteError

X86, ARM = find("x86"), find("arm")


def quantized(model: nn.Module, *inputs: Tensor, target: Any = X86, **options: Any) -> Graph:
    graph = capture(model, *inputs)
    assert apply(Quantize(target, [[*inputs]], **options), graph)
    return graph


def grids(graph: Graph) -> list[str]:
    """The operators whose results stand on a grid, inputs as `input`, in order; weights and biases left out."""
    found = []
    for node in graph.calls(FAKE_QUANTIZE):
        source = node.args[0]
        if source.op == "placeholder":
            found.append("input")
        elif source.op == "call_function":
            found.append(str(source.target.__name__).split(".")[0])
    return found


def scales(graph: Graph) -> list[str]:
    """The name of the scale of each value's grid, in the order of `grids`."""
    values = [n for n in graph.calls(FAKE_QUANTIZE) if n.args[0].op != "get_attr"]
    return [str(n.args[1].target) for n in values]


# ---- Placement ------------------------------------------------------------------------------------------------------


def test_a_conv_with_its_relu_is_one_unit() -> None:
    graph = quantized(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2))
    weight = "fake_quantize(f32[{0}], f32[{1}], i32[{1}], quant_min=-127, quant_max=127, axis=0) : f32[{0}]"
    scale = "mul(f32[], f32[{0}]) : f32[{0}]"
    bias = "fake_quantize(f32[{1}], %{0}, i32[{1}], quant_min=-2147483648, quant_max=2147483647, axis=0) : f32[{1}]"
    value = "fake_quantize({0}, f32[], i32[], quant_min=0, quant_max=255, axis=-1) : f32[N, {1}, 8, 8]"
    assert str(graph) == dedent(f"""\
        graph(input_1: f32[N, 3, 8, 8])
          %0 = {value.format("input_1", 3)}
          %1 = {weight.format("4, 3, 3, 3", 4)}
          %2 = {scale.format(4)}
          %3 = {bias.format(2, 4)}
          %4 = conv2d(%0, %1, %3, padding=[1, 1]) : f32[N, 4, 8, 8]
          %5 = relu(%4) : f32[N, 4, 8, 8]
          %6 = {value.format("%5", 4)}
          %7 = {weight.format("2, 4, 3, 3", 2)}
          %8 = {scale.format(2)}
          %9 = {bias.format(8, 2)}
          %10 = conv2d(%6, %7, %9, padding=[1, 1]) : f32[N, 2, 8, 8]
          %11 = {value.format("%10", 2)}
          return %11""")


def test_a_sum_has_a_grid_for_each_operand_and_its_result() -> None:
    graph = quantized(Model(lambda m, x: F.relu(m.a(x) + m.b(x)), a=conv(3, 4), b=conv(3, 4)), images(2))
    assert grids(graph) == ["input", "conv2d", "conv2d", "relu"]
    assert len(set(scales(graph))) == 4


def test_an_activation_with_a_second_reader_in_front_is_not_fused() -> None:
    graph = quantized(Model(lambda m, x: (lambda y: F.relu(y) + y)(m.a(x)), a=conv(3, 4)), images(2))
    assert grids(graph) == ["input", "conv2d", "relu", "add"]
    assert graph.calls(torch.ops.aten.relu.default)[0].args[0].target is FAKE_QUANTIZE


def test_a_max_pool_keeps_its_inputs_grid() -> None:
    graph = quantized(nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 2)), images(2))
    assert grids(graph) == ["input", "relu", "max_pool2d", "conv2d"]
    found = scales(graph)
    assert found[1] == found[2]
    assert len(set(found)) == 3


def test_a_linear_layer_at_the_end_leaves_in_float() -> None:
    graph = quantized(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(2, 3, 2, 2))
    assert names(graph)[-1] == "linear"


def test_a_float_reader_of_an_input_sees_the_exact_value() -> None:
    graph = quantized(Model(lambda m, x: (m.a(x), x.sin()), a=conv(3, 4)), images(2))
    sine = graph.calls(torch.ops.aten.sin.default)[0]
    assert sine.args[0].op == "placeholder"


def test_a_float_reader_of_an_integer_unit_sees_the_rounded_value() -> None:
    graph = quantized(Model(lambda m, x: (lambda y: (m.b(y), y.sin()))(m.a(x)), a=conv(3, 4), b=conv(4, 2)), images(2))
    sine = graph.calls(torch.ops.aten.sin.default)[0]
    assert sine.args[0].target is FAKE_QUANTIZE


def test_a_sum_between_float_values_stays_float() -> None:
    graph = quantized(Model(lambda m, x: (m.a(x), x.sin() + x.cos()), a=conv(3, 4)), images(2))
    assert grids(graph) == ["input", "conv2d"]


def test_a_sum_of_an_integer_and_a_float_value_joins() -> None:
    graph = quantized(Model(lambda m, x: m.a(x) + x[:, :1].sin(), a=conv(3, 4)), images(2))
    assert sorted(grids(graph)) == ["add", "conv2d", "input", "sin"]


def test_the_gate_of_squeeze_and_excitation_lies_between_0_and_1() -> None:
    graph = simulated(model_of("squeeze-excite"), X86)
    gate = next(
        n
        for n in graph.calls(FAKE_QUANTIZE)
        if getattr(n.args[0], "target", None) is torch.ops.aten.hardsigmoid.default
    )
    assert float(graph.tensor(gate.args[1])) == pytest.approx(1 / 255)


def test_hard_swish_is_two_grids_and_a_product() -> None:
    graph = simulated(nn.Sequential(conv(3, 4), nn.Hardswish(), conv(4, 2)), X86)
    assert grids(graph) == ["input", "conv2d", "hardsigmoid", "mul", "conv2d"]


def test_a_transposed_conv_stays_float_and_says_why() -> None:
    graph = capture(nn.Sequential(conv(3, 4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), conv(2, 2)), images(2))
    changes = apply(Quantize(X86, [[images(2)]]), graph)
    assert Change("2", "stays float: there is no integer kernel for transposed convolutions") in changes


def test_weights_are_per_channel_and_biases_on_the_accumulators_grid() -> None:
    graph = quantized(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2))
    for layer in graph.calls(torch.ops.aten.conv2d.default):
        source, weight, bias = layer.args[:3]
        s, w, b = (graph.tensor(n.args[1]) for n in (source, weight, bias))
        torch.testing.assert_close(b, s * w, rtol=1e-6, atol=0)
        codes = bias.args[0]
        assert not graph.tensor(bias.args[2]).any()
        values = graph.tensor(codes) / b
        assert float(values.abs().max()) < 2**31


# ---- Formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("options", [{}, {"per_channel": True}, {"power_of_two": True}, {"symmetric": True}])
def test_more_bits_come_closer(bits: int, options: dict[str, bool]) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval()
    x = images(8)
    graph = quantized(
        model, x, weights=Format(bits, per_channel=options.get("per_channel", False), power_of_two="power_of_two" in options),
        activations=Format(bits, signed=False, symmetric=options.get("symmetric", False)), estimator="minmax",
    )  # fmt: skip
    found = sqnr(model(x), graph(x))
    assert found > 6 * bits - 17
    if bits < 16 and not options.get("power_of_two"):
        assert found < 6 * bits + 8


def test_formats_by_layer_name() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2))
    formats = {
        "2": LayerFormat(weights=Format(4, per_channel=True), activations=Format(4, signed=False, symmetric=False))
    }
    graph = quantized(model, images(2), formats=formats)
    bounds = {str(n.args[0].target): n.args[4] for n in graph.calls(FAKE_QUANTIZE) if n.args[0].op == "get_attr"}
    assert (bounds["0.weight"], bounds["2.weight"], bounds["4.weight"]) == (127, 7, 127)
    assert [n.args[4] for n in graph.calls(FAKE_QUANTIZE) if n.args[0].op != "get_attr"] == [255, 255, 15, 255]


def test_the_first_matching_pattern_wins() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 2))
    graph = quantized(model, images(2), formats={"2": None, "*": LayerFormat(weights=Format(4))})
    bounds = {str(n.args[0].target): n.args[4] for n in graph.calls(FAKE_QUANTIZE) if n.args[0].op == "get_attr"}
    assert "2.weight" not in bounds
    assert bounds["0.weight"] == bounds["4.weight"] == 7


def test_an_excluded_layer_stays_float_and_is_reported() -> None:
    graph = capture(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2))
    changes = apply(Quantize(X86, [[images(2)]], formats={"0": None}), graph)
    assert Change("0", "stays float: excluded by name") in changes
    assert graph.calls(torch.ops.aten.conv2d.default)[0].args[0].op == "placeholder"


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    graph = capture(nn.Sequential(conv(3, 4), nn.ReLU()), images(2))
    with pytest.raises(InputError, match=r"pattern 'layer9\.\*' matches no layer; layers are named like 0"):
        Quantize(X86, [[images(2)]], formats={"layer9.*": None})(graph)


@pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse", "entropy"])
def test_every_estimator_stays_close_on_plain_data(estimator: str) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval()
    assert sqnr(model(images(8)), quantized(model, images(8), estimator=estimator)(images(8))) > 25


@pytest.mark.parametrize("option", ["estimator", "weight_estimator"])
def test_an_unknown_estimator_is_refused_with_the_known_ones(option: str) -> None:
    with pytest.raises(InputError, match="unknown range estimator 'median'; known: minmax"):
        Quantize(X86, [], **{option: "median"})


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_empty_calibration_data_are_refused() -> None:
    graph = capture(nn.Sequential(conv(3, 4)), images(2))
    with pytest.raises(InputError, match="calibration data are empty"):
        Quantize(X86, [])(graph)


def test_a_model_without_integer_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"nothing to quantize: .* 'x86' computes in integer; leave .* passes=\[\]"):
        Quantize(X86, [[torch.randn(2, 4)]])(capture(nn.Sequential(nn.ReLU(), nn.Tanh()), torch.randn(2, 4)))


def test_excluding_every_layer_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to quantize"):
        Quantize(X86, [[images(2)]], formats={"*": None})(capture(nn.Sequential(conv(3, 4)), images(2)))


@pytest.mark.parametrize(("name", "bad"), [("weight", torch.nan), ("weight", torch.inf), ("bias", torch.nan)])
def test_a_bad_weight_is_named(name: str, bad: float) -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    graph = capture(model, images(2))
    with torch.no_grad():
        graph.state_dict()[f"2.{name}"].view(-1)[1] = bad
    with pytest.raises(NonFiniteError, match=rf"weight '2\.{name}' contains NaN or infinity"):
        Quantize(X86, [[images(2)]])(graph)


def test_a_bad_activation_is_named_by_the_first_operator_that_makes_it() -> None:
    graph = capture(Model(lambda m, x: m.b(m.a(x).log()), a=conv(3, 4), b=conv(4, 2)), images(2))
    with pytest.raises(NonFiniteError, match=r"^log at .* is the first operator to produce NaN"):
        Quantize(X86, [[images(2)]])(graph)


def test_bad_calibration_images_are_blamed() -> None:
    graph = capture(nn.Sequential(conv(3, 4)), images(2))
    with pytest.raises(NonFiniteError, match="input 'input_1' contains infinity in a calibration batch"):
        Quantize(X86, [[images(2) / 0]])(graph)


def test_a_failed_run_leaves_the_graph_as_it_was() -> None:
    graph = capture(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2))
    text = str(graph)
    with pytest.raises(NonFiniteError):
        Quantize(X86, [[images(2)], [images(2) / 0]])(graph)
    assert str(graph) == text


def test_a_second_run_does_nothing() -> None:
    graph = quantized(nn.Sequential(conv(3, 4)), images(2))
    assert Quantize(X86, [[images(2)]])(graph) == []


def test_the_calibration_batches_only_decide_ranges() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    before = copy.deepcopy(model.state_dict())
    quantized(model, images(2))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_dead_channel_keeps_its_bias() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.9
    x = images(4)
    graph = quantized(model, x, estimator="minmax")
    inner = graph.calls(torch.ops.aten.relu.default)[0]
    bias = graph.calls(torch.ops.aten.conv2d.default)[0].args[2]
    s = graph.tensor(bias.args[1])
    assert inner is not None
    assert float(torch.round(torch.tensor(0.9) / s[1]) * s[1]) == pytest.approx(0.9, abs=0.01)
    assert sqnr(model(x), graph(x)) > 30


# ---- Simulated == deployed == ONNX Runtime ---------------------------------------------------------------------------


def output_step(graph: Graph) -> float | None:
    """One step of the grid the output stands on; None for a float output."""
    node = graph.outputs[0]
    return float(graph.tensor(node.args[1])) if node.target is FAKE_QUANTIZE else None


ALIKE = [(block, "x86") for block in BLOCKS] + [(block, "arm") for block in ("residual", "relu6", "squeeze-excite")]


@pytest.mark.parametrize(("block", "target"), ALIKE)
def test_simulation_deployment_and_runtime_answer_alike(block: str, target: str) -> None:
    model, graph, artifact = lowered(block, target)
    x = images(64, seed=7)
    with torch.no_grad():
        expected, simulation, deployed, runtime = model(x), graph(x), deploy(graph)(x), artifact(x)
    torch.testing.assert_close(deployed, simulation, rtol=1e-5, atol=1e-5)
    assert sqnr(expected, simulation) > 20
    # a rounding that falls the other way moves a float output by about a step of the grid in front of it
    assert sqnr(simulation, runtime) > sqnr(expected, simulation)
    assert float((runtime.argmax(1) == simulation.argmax(1)).double().mean()) >= 0.98


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_an_integer_output_differs_by_at_most_one_step(target: str) -> None:
    from graphopt.backends.onnxruntime import lower

    graph = simulated(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)), target_of(target))
    x = images(32, seed=7)
    with torch.no_grad():
        simulation, runtime = graph(x), lower(graph, target_of(target))(x)
    step = output_step(graph)
    assert step is not None
    assert float((simulation - runtime).abs().max()) <= step * 1.001
    assert float((simulation != runtime).double().mean()) < 0.01


# ---- Training -------------------------------------------------------------------------------------------------------


def test_training_the_simulated_graph_reduces_its_loss() -> None:
    teacher, student = (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval() for _ in range(2))
    x = images(32)
    graph = quantized(student, x, weights=Format(4, per_channel=True))
    goal = teacher(x).detach()
    optimizer = torch.optim.Adam(graph.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (graph(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_target_of_ones_own_decides_what_is_integer() -> None:
    own = X86.replace(integer=frozenset({"conv"}), moves=frozenset(), float_output=frozenset())
    graph = quantized(Model(lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2)).sum((2, 3)), a=conv(3, 4), b=conv(4, 2)), images(2),
                      target=own)  # fmt: skip
    assert grids(graph) == ["input", "relu", "max_pool2d", "conv2d"]
    assert len(set(scales(graph))) == 4


def test_a_sum_with_the_models_input_is_integer_when_the_other_half_is() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.conv(x))

    data = torch.randn(8, 4, 6, 6)
    graph = Graph.capture(Residual().eval(), data[:1])
    Quantize(find("x86"), [[data]])(graph)
    assert graph.output.all_input_nodes[0].target is FAKE_QUANTIZE


# ---- Ranges by what the readers make of them ------------------------------------------------------------------------


def loud_and_unread() -> tuple[nn.Module, Tensor]:
    """One channel of long tails that the next layer hardly reads, beside others it lives by."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 3, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4)[:, :, None, None] * torch.tensor([1.0, 1, 1, 8])[:, None, None, None])
        model[1].weight[:, 3] = 1e-4
    return model, torch.randn(64, 4, 8, 8)


@pytest.mark.thorough
def test_output_mse_spends_codes_on_what_the_next_layer_reads() -> None:
    model, x = loud_and_unread()
    four = Format(4, signed=False, symmetric=False)

    def error(estimator: str) -> float:
        graph = Graph.capture(model, x[:1])
        Quantize(find("x86"), [[x]], estimator=estimator, formats={"0": LayerFormat(None, four)})(graph)
        graph.refresh()
        with torch.no_grad():
            return float((graph(x) - model(x)).square().mean())

    errors = {name: error(name) for name in ("minmax", "percentile", "mse", "entropy", "aciq", "output_mse")}
    assert errors["output_mse"] <= 1.02 * min(errors.values())
    assert errors["output_mse"] < 0.6 * errors["mse"]


def test_output_mse_needs_its_data_only_once() -> None:
    model, x = loud_and_unread()
    graph = Graph.capture(model, x[:1])
    assert Quantize(find("x86"), iter([[x]]), estimator="output_mse")(graph)


@pytest.mark.parametrize("name", ["residual", "concat", "hard-swish", "pooled"])
def test_output_mse_takes_every_kind_of_reader(name: str) -> None:
    bodies = {
        "residual": lambda m, x: m.head(F.relu(m.stem(x) + m.other(m.stem(x)))),
        "concat": lambda m, x: m.wide(torch.cat([F.relu6(m.stem(x)), m.other(m.stem(x))], 1)),
        "hard-swish": lambda m, x: m.head(m.stem(x) * F.hardsigmoid(m.stem(x))),
        "pooled": lambda m, x: m.head(F.max_pool2d(F.relu(m.stem(x)), 2)).flatten(1),
    }
    model = Model(
        bodies[name],
        stem=nn.Conv2d(3, 4, 1),
        other=nn.Conv2d(4, 4, 1),
        head=nn.Conv2d(4, 2, 1),
        wide=nn.Conv2d(8, 2, 1),
    )
    x = torch.randn(16, 3, 8, 8)
    graph = Graph.capture(model.eval(), x[:1])
    assert Quantize(find("x86"), [[x]], estimator="output_mse")(graph)
    graph.refresh()
    with torch.no_grad():
        wanted = model(x)
        assert float((graph(x) - wanted).square().mean()) < 1e-3 * float(wanted.square().mean())

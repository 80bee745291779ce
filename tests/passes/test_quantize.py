"""Where quantizers go, in which formats, and what they refuse."""

from __future__ import annotations

import copy
from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images, model_of, simulated
from quantizing import X86, grids, quantized, scales
from rewriting import Model, apply, capture, names
from torch import nn

from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir.cost import sqnr
from graphopt.ir.passes import Change
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.utils.errors import InputError, NonFiniteError

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
          %4 = conv2d(%0, %1, %3, padding=[1, 1]) : f32[N, 4, 8, 8]  # 0
          %5 = relu(%4) : f32[N, 4, 8, 8]  # 1
          %6 = {value.format("%5", 4)}
          %7 = {weight.format("2, 4, 3, 3", 2)}
          %8 = {scale.format(2)}
          %9 = {bias.format(8, 2)}
          %10 = conv2d(%6, %7, %9, padding=[1, 1]) : f32[N, 2, 8, 8]  # 2
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


@pytest.mark.thorough
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

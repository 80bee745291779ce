"""From simulated to deployed: the same values, with integers stored."""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, images, lowered, model_of
from rewriting import Model, apply, assert_equal_but_for_ties, capture, names
from torch import Tensor, nn
from uneven import PER_TENSOR, uneven

from graphopt.formats import Format, fake_quantize
from graphopt.ir.graph import Graph
from graphopt.lowering.qdq import deploy, storage
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.targets import find

X86 = find("x86")


def quantized(model: nn.Module, *inputs: Tensor, equalize: bool = False, **options: object) -> Graph:
    graph = capture(model, *inputs)
    if equalize:
        assert apply(EqualizeChannels(), graph)
    apply(Quantize(X86, [[*inputs]], estimator="minmax", **options), graph)  # type: ignore[arg-type]
    return graph


def constants(graph: Graph) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in graph.state_dict().items()}


def test_the_clip_of_a_relu_is_left_to_the_grid() -> None:
    graph = deploy(quantized(nn.Sequential(conv(3, 4), nn.ReLU()), images(2)))
    assert str(graph) == dedent("""\
        graph(input_1: f32[N, 3, 8, 8])
          %0 = quantize_per_tensor(input_1, {0}) : u8[N, 3, 8, 8]
          %1 = dequantize_per_tensor(%0, {0}) : f32[N, 3, 8, 8]
          %2 = dequantize_per_channel(i8[4, 3, 3, 3], f32[4], i32[4], axis=0, quant_min=-127, quant_max=127, dtype=i8) : f32[4, 3, 3, 3]
          %3 = dequantize_per_channel(i32[4], f32[4], i32[4], axis=0, quant_min=-2147483648, quant_max=2147483647, dtype=i32) : f32[4]
          %4 = conv2d(%1, %2, %3, padding=[1, 1]) : f32[N, 4, 8, 8]  # 0
          %5 = quantize_per_tensor(%4, {1}) : u8[N, 4, 8, 8]  # 1
          %6 = dequantize_per_tensor(%5, {1}) : f32[N, 4, 8, 8]
          return %6""").format(*grids(graph))  # noqa: E501


def grids(graph: Graph) -> list[str]:
    quantizers = [n for n in graph.calls() if str(n.target).startswith("quantized_decomposed.quantize")]
    return [
        f"scale={n.args[1]}, zero_point={n.args[2]}, quant_min={n.args[3]}, quant_max={n.args[4]}, dtype=u8"
        for n in quantizers
    ]


def test_weights_are_stored_in_8_bits_and_biases_in_32() -> None:
    graph = deploy(quantized(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2)))
    stored = sorted(str(t) for name, t in constants(graph).items() if name.endswith("_codes"))
    assert stored == ["torch.int32", "torch.int32", "torch.int8", "torch.int8"]
    assert not [n for n, p in graph.named_parameters()]


@pytest.mark.thorough
@pytest.mark.parametrize("block", ["residual", "inverted residual", "squeeze-excite linear", "relu6"])
def test_every_value_stays(block: str) -> None:
    graph = lowered(block, "x86").graph
    x = images(16, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(deploy(graph)(x), graph(x), rtol=1e-6, atol=1e-6)


def test_the_simulated_graph_is_left_as_it_is() -> None:
    graph = quantized(nn.Sequential(conv(3, 4), nn.ReLU6(), conv(4, 2)), images(2))
    text, weights = str(graph), {k: v.clone() for k, v in graph.state_dict().items()}
    deploy(graph)
    assert str(graph) == text
    assert all(torch.equal(v, weights[k]) for k, v in graph.state_dict().items())


@pytest.mark.thorough
def test_a_float_graph_is_copied() -> None:
    graph = capture(model_of("residual"), images(2))
    copy = deploy(graph)
    assert copy is not graph
    assert str(copy) == str(graph)


@pytest.mark.thorough
def test_a_graph_in_training_mode_is_deployed_for_inference() -> None:
    graph = quantized(nn.Sequential(conv(3, 4), nn.Dropout(0.5), conv(4, 2)), images(2)).train()
    assert not deploy(graph).training
    assert graph.training


def test_deploying_again_changes_nothing() -> None:
    once = deploy(quantized(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), images(2)))
    again = deploy(once)
    assert str(again) == str(once)
    assert torch.equal(again(images(3)), once(images(3)))


def test_relu6_whose_end_the_data_never_reach_keeps_its_clip_to_the_grid() -> None:
    graph = deploy(quantized(nn.Sequential(conv(3, 4), nn.ReLU6(), conv(4, 2)), images(2)))
    assert "relu6" not in names(graph)


@pytest.mark.thorough
@pytest.mark.parametrize("clip", [nn.Hardtanh(-0.1, 0.1), nn.ReLU6(), nn.Hardtanh(0.0, 0.3)])
def test_any_clip_computes_the_same_deployed(clip: nn.Module) -> None:
    graph = quantized(nn.Sequential(conv(3, 4), clip, conv(4, 2)), images(8) * 5)
    x = images(8, seed=4) * 9
    torch.testing.assert_close(deploy(graph)(x), graph(x), rtol=0, atol=0)


@pytest.mark.thorough
def test_a_clip_on_a_grid_wider_than_itself_stays() -> None:
    """The input to the sum shares no grid with the clip, so the clip has to be computed."""
    graph = quantized(
        Model(lambda m, x: F.relu6(m.a(x) + m.b(x)).clamp(max=0.5), a=conv(3, 4), b=conv(3, 4)), images(4)
    )
    x = images(8, seed=4) * 3
    torch.testing.assert_close(deploy(graph)(x), graph(x), rtol=0, atol=0)


def test_a_clip_with_a_second_reader_stays() -> None:
    model = Model(lambda m, x: (lambda y: (m.b(y), y.sin()))(F.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    graph = quantized(model, images(2))
    x = images(8, seed=4)
    for found, expected in zip(deploy(graph)(x), graph(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- An end per channel ---------------------------------------------------------------------------------------------


def assert_close_but_for_ties(deployed: Graph, graph: Graph) -> None:
    x = images(32, seed=3) * 6
    step = float(graph.tensor(graph.outputs[0].args[1]))  # type: ignore[arg-type]
    assert_equal_but_for_ties(deployed(x), graph(x), step)


@pytest.mark.parametrize("groups", [1, 8])
def test_ends_per_channel_by_saturating_additions_equal_the_simulation(groups: int) -> None:
    graph = quantized(uneven(groups), images(16) * 4, equalize=True, weights=PER_TENSOR)
    clamps = graph.calls(torch.ops.aten.clamp.Tensor)
    assert len(clamps) == 2
    assert float(graph.tensor(clamps[0].args[2]).max() / graph.tensor(clamps[0].args[2]).min()) > 1.5
    deployed = deploy(graph)
    assert not {"clamp", "relu", "relu6"} & set(names(deployed))
    assert 1 <= names(deployed).count("add") <= 2  # one behind each layer that needs it: the other is in its bias
    assert_close_but_for_ties(deployed, graph)


@pytest.mark.parametrize(
    "activations", [Format(8), Format(8, symmetric=False), Format(8, signed=False, symmetric=False)]
)
@pytest.mark.parametrize("clip", [nn.ReLU(), nn.ReLU6()])
def test_a_relu_that_the_grid_does_not_imply_stays(activations: Format, clip: nn.Module) -> None:
    """A symmetric grid reaches below zero, so its own end is not the activation's."""
    graph = quantized(nn.Sequential(conv(3, 4), clip, conv(4, 2)), images(4), activations=activations)
    deployed = deploy(graph)
    assert bool({"relu", "relu6", "hardtanh", "clamp"} & set(names(deployed))) == (activations == Format(8))
    assert_close_but_for_ties(deployed, graph)


@pytest.mark.thorough
@pytest.mark.parametrize("activations", [Format(8), Format(8, symmetric=False)])
def test_ends_per_channel_on_signed_grids(activations: Format) -> None:
    graph = quantized(uneven(), images(16) * 4, equalize=True, weights=PER_TENSOR, activations=activations)
    assert_close_but_for_ties(deploy(graph), graph)


@pytest.mark.thorough
@pytest.mark.parametrize("signed", [False, True])
def test_ends_per_channel_behind_a_sum_take_two_additions(signed: bool) -> None:
    model = Model(lambda m, x: m.c(F.relu6(m.a(x) + m.b(x))), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)).eval()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.mul_(torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1))
    graph = quantized(
        model, images(16) * 4, equalize=True, weights=PER_TENSOR, activations=Format(8, signed=signed, symmetric=False)
    )
    deployed = deploy(graph)
    assert names(deployed).count("add") == 3
    assert_close_but_for_ties(deployed, graph)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("signed", [False, True])
def test_saturation_is_a_minimum(bits: int, signed: bool) -> None:
    """min(q, e) = sat(q + (m - e)) - (m - e), for every code and every end."""
    format = Format(bits, signed=signed, symmetric=False)
    low, high = format.quant_min, format.quant_max
    q, e = torch.meshgrid(torch.arange(low, high + 1), torch.arange(low, high + 1), indexing="ij")
    assert torch.equal((q + high - e).clamp(low, high) - (high - e), torch.minimum(q, e))


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-128, 127, torch.int8), (-7, 7, torch.int8), (0, 15, torch.int8), (0, 255, torch.uint8), (0, 65535, torch.uint16),
     (-32767, 32767, torch.int16), (-(2**31), 2**31 - 1, torch.int32)],
)  # fmt: skip
def test_codes_are_stored_in_the_smallest_type(low: int, high: int, dtype: torch.dtype) -> None:
    assert storage(low, high) == dtype


def test_codes_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="no integer type"):
        storage(0, 2**40)


def test_stored_codes_are_those_of_the_simulation() -> None:
    graph = quantized(nn.Sequential(conv(3, 4)), images(2))
    weight = graph.calls(torch.ops.aten.conv2d.default)[0].args[1]
    tensor, scale, zero_point = (graph.tensor(a) for a in weight.args[:3])
    codes = next(v for k, v in deploy(graph).state_dict().items() if k.endswith("weight_codes"))
    rounded = fake_quantize(tensor, scale, zero_point, -127, 127, 0)
    assert torch.equal(codes.float() * scale.reshape(-1, 1, 1, 1), rounded)


@pytest.mark.parametrize("signed", [False, True])
def test_a_clip_that_ends_a_code_before_the_grid_is_left_to_its_codes(signed: bool) -> None:
    """[-1, 1] in steps of 2 / 255 with zero at a whole code: one end is between two codes."""
    graph = quantized(
        nn.Sequential(conv(3, 4), nn.Hardtanh(), conv(4, 2)), images(4) * 20,
        activations=Format(8, signed=signed, symmetric=False),
    )  # fmt: skip
    deployed = deploy(graph)
    assert "hardtanh" not in names(deployed)
    assert_close_but_for_ties(deployed, graph)
    found = {n.args[3:5] for n in deployed.calls(torch.ops.quantized_decomposed.quantize_per_tensor.default)}
    assert found == ({(-128, 127), (-128, 126)} if signed else {(0, 255), (0, 254)})

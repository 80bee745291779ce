"""Values that all are equal have a range of no width, and a size all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphopt
from graphopt.execution.observers import Histogram
from graphopt.formats import (
    BFLOAT16,
    FAKE_QUANTIZE,
    FLOAT16,
    BlockFloat,
    Codebook,
    Format,
    LogFormat,
    NumberFormat,
    scale_and_zero_point,
)
from graphopt.formats import reach as reach_of
from graphopt.formats.blocks import block_grid
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.biases import fit_bias
from graphopt.passes.quantization.ranges import ESTIMATORS
from graphopt.targets import find

UNIFORM = [
    Format(8, per_channel=True),
    Format(8),
    Format(4, per_channel=True, full_range=True),
    Format(16, per_channel=True),
    Format(8, signed=False, symmetric=False, per_channel=True),
    Format(8, signed=False, per_channel=True),
    Format(8, per_channel=True, power_of_two=True),
]
OTHERS = [LogFormat(8, per_channel=True), BlockFloat(8, block=4), Codebook(4, per_channel=True), FLOAT16, BFLOAT16]
SIZES = [1e-6, 0.02, 1.0, 300.0]


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("format", [*UNIFORM, *OTHERS], ids=str)
def test_every_format_keeps_a_channel_of_equal_numbers(format: NumberFormat, method: str) -> None:
    sign = 1.0 if isinstance(format, Format) and format.symmetric and not format.signed else -1.0
    for size in SIZES[1:] if format is FLOAT16 else SIZES:
        weight = size * torch.tensor([1.0, sign])[:, None].expand(2, 8)
        rounded = format.fit(weight, 0, method)(weight)  # type: ignore[arg-type]
        torch.testing.assert_close(rounded, weight, rtol=0.51 if "power of two" in str(format) else 0.08, atol=0)


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_estimator_keeps_a_value_that_never_changes(estimator: str, symmetric: bool) -> None:
    for size in (*SIZES, -0.7):
        seen = Histogram()
        seen.update(torch.full((100,), size))
        format = Format(8, signed=size < 0 or symmetric, symmetric=symmetric)
        ends = ESTIMATORS[estimator](seen, format)
        grid = scale_and_zero_point(*map(torch.tensor, ends), format)
        rounded = FAKE_QUANTIZE(torch.tensor(size), *grid, format.quant_min, format.quant_max, -1)
        assert float(rounded) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_blocks_of_equal_weights_keep_them(symmetric: bool, estimator: str) -> None:
    weight = torch.tensor([0.03, -2.0])[:, None].expand(2, 64)
    scale, zero = block_grid(weight, 4, 32, symmetric=symmetric, estimator=estimator)
    zero = zero if zero.dim() else zero.expand_as(scale).contiguous()
    torch.testing.assert_close(FAKE_QUANTIZE(weight, scale, zero, 0, 15, 1, 32), weight, rtol=0.05, atol=0)


def test_the_reach_of_a_range_is_its_distance_from_zero() -> None:
    low, high = torch.tensor([0.5, -3.0, -2.0, 0.0]), torch.tensor([0.5, -3.0, 1.0, 0.0])
    assert reach_of(low, high).tolist() == [0.5, 3.0, 2.0, 0.0]


@pytest.mark.parametrize("scale", [torch.ones(()), torch.ones(3)], ids=["per tensor", "per channel"])
def test_a_layer_of_zeros_answers_its_bias(scale: Tensor) -> None:
    bias, step = torch.tensor([0.3, -0.02, 0.0]), torch.tensor(0.05)
    fitted = fit_bias(scale, torch.zeros_like(scale), step, bias) * step
    torch.testing.assert_close(torch.round(bias / fitted) * fitted, bias, rtol=1e-2, atol=1e-5)
    assert float((bias / fitted).abs().max()) < 2**30


CASES = {
    "a constant layer": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(3, 3, 1, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 2),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", CASES)
def test_a_layer_of_equal_weights_answers_like_float(kind: str, bits: int, per_channel: bool) -> None:
    torch.manual_seed(0)
    layer = CASES[kind]()
    with torch.no_grad():
        layer.weight.fill_(-0.004)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), layer).eval()
    x = torch.rand(4, 3, 8, 8)
    target = find("x86").replace(weights=Format(bits, per_channel=per_channel))
    graph = Graph.capture(model, x)
    Quantize(target, [[x]])(graph)
    alone = graph.clone()
    for quantizer in alone.calls(FAKE_QUANTIZE):
        if quantizer.args[0].op == "call_function":  # type: ignore[union-attr]
            alone.replace(quantizer, quantizer.args[0])  # type: ignore[arg-type]
    alone.refresh()
    assert sqnr(model(x), alone(x)) > (25 if bits == 8 else 12)


@pytest.mark.parametrize("target", ["x86", "arm", "hexagon", "tvm-x86"])
def test_a_layer_of_zero_weights_keeps_its_bias_on_every_target(target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.uniform_(0.01, 0.05)
    x = torch.rand(4, 3, 12, 12)
    result = graphopt.optimize(model, x, target=target, calibration=x, measure=False)
    assert sqnr(model(x), result.graph(x)) > 30


def blur() -> nn.Module:
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    nn.init.constant_(conv.weight, 1 / 9)
    return conv


def norm() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.4, 1.6)  # type: ignore[union-attr, func-returns-value]
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm


NETWORKS = {
    "a batch norm alone": (lambda: nn.Sequential(norm(), nn.ReLU(), nn.Conv2d(6, 4, 3)), (4, 6, 12, 12)),
    "one input feature": (lambda: nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3)), (64, 1)),
    "grey images": (lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3)), (2, 1, 8, 8)),
    "a box blur": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), blur(), nn.ReLU(), nn.Conv2d(6, 4, 1)), (4, 6, 12, 12)),
}


@pytest.mark.many
@pytest.mark.thorough
@pytest.mark.parametrize("target", ["x86", "arm", "tvm-x86"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_device_answers_is_as_near_to_float_as_eight_bits_allow(name: str, target: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    graph = graphopt.optimize(model, x, target=target, calibration=x, measure=False).graph
    assert sqnr(model(x), graphopt.simulate(graph, target)(x)) > 30

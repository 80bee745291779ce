"""Targets of vendors: what is emitted obeys the hardware's rules, and answers what was simulated."""

from __future__ import annotations

import onnx
import pytest
import torch
from blocks import BLOCKS, images, model_of
from capture_once import capture_once
from torch import Tensor, nn

import graphopt
from graphopt.compiler.optimize import Optimized
from graphopt.evaluation.compliance.model import Model
from graphopt.formats import Format
from graphopt.passes.quantization import LayerFormat
from graphopt.targets import Target, find
from graphopt.targets.vendors import VENDORS
from graphopt.utils.errors import InputError

FORMATS = [(name, i) for name, target in VENDORS.items() for i in range(1 + len(target.formats.more_activations))]


def variant(name: str, number: int) -> Target:
    """A target with its own or another format of values that its hardware takes."""
    target = find(name)
    return target.replace(activations=[target.formats.activations, *target.formats.more_activations][number])


def optimized(target: Target, block: str) -> Optimized:
    data = [images(8, seed=s) for s in range(2)]
    graph = capture_once(model_of(block), images(2), dynamic_batch=not target.runtime.static_shapes)
    return graphopt.optimize(graph, target=target, calibration=data, measure=False)


@pytest.mark.thorough
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["nvidia", "hexagon", "ceva", "vitis"])  # one of each kind of formats
def test_every_block_obeys(name: str, block: str) -> None:
    assert graphopt.check(optimized(find(name), block).artifact, name) == []


@pytest.mark.thorough
@pytest.mark.parametrize("name, number", FORMATS)
def test_every_format_obeys_and_answers_what_was_simulated(name: str, number: int) -> None:
    target = variant(name, number)
    done = optimized(target, "residual")
    x = images(2, seed=3)
    assert graphopt.check(done.artifact, target) == []
    with torch.no_grad():
        simulated, exact = done.graph(x), model_of("residual")(x)
    span = float(exact.max() - exact.min())
    torch.testing.assert_close(done.artifact(x), graphopt.simulate(done.graph, target)(x), rtol=0, atol=1e-5 * span)
    assert float((done.artifact(x) - simulated).abs().max()) < 0.01 * span
    assert (
        float((done.artifact(x) - exact).abs().max()) < (0.1 if target.formats.activations.bits == 8 else 0.02) * span
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["nvidia", "vitis", "sigmastar"])
def test_the_report_counts_what_the_file_says_is_integer_and_times_nothing(name: str) -> None:
    done = graphopt.optimize(model_of("residual"), images(2), target=name, calibration=[images(8)])
    assert done.report.integer_macs == 1.0
    assert done.report.latency is None
    assert name in done.report.missing["latency"]


@pytest.mark.thorough
def test_a_compiler_that_needs_the_batch_size_gets_it() -> None:
    done = optimized(find("hexagon"), "plain")
    assert [spec.shape for spec in done.artifact.manifest.inputs] == [(2, 3, 8, 8)]


@pytest.mark.thorough
def test_a_format_that_the_hardware_lacks_breaks_its_rules() -> None:
    wide = find("nvidia").replace(activations=Format(8, signed=False, symmetric=False))
    rules = {v.rule for v in graphopt.check(optimized(wide, "plain").artifact, "nvidia")}
    assert rules == {"value-sign"}


@pytest.mark.parametrize(
    "name, layer, says",
    [
        ("nvidia", LayerFormat(None, Format(8, signed=False, symmetric=False)), "takes no activations in u8 affine"),
        ("vitis", LayerFormat(Format(8, per_channel=True)), "takes no weights in s8 symmetric per channel"),
        ("hexagon", LayerFormat(Format(16)), "takes no weights in s16"),
        ("nnie", LayerFormat(Format(8)), "it takes log8"),
    ],
)
def test_a_format_that_the_hardware_lacks_is_refused(name: str, layer: LayerFormat, says: str) -> None:
    with pytest.raises(InputError, match=says):
        graphopt.optimize(
            model_of("plain"), images(2), target=name, calibration=[images(8)], formats={"*": layer}, measure=False
        )


@pytest.mark.thorough
def test_fewer_bits_are_stored_in_those_it_has() -> None:
    done = graphopt.optimize(
        model_of("plain"), images(2), target="nvidia", calibration=[images(8)], measure=False,
        formats={"*": LayerFormat(Format(4, per_channel=True))},
    )  # fmt: skip
    assert graphopt.check(done.artifact, "nvidia") == []


# ---- TensorRT -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_tensorrt_gets_the_sum_behind_its_layer_and_biases_in_float() -> None:
    model = Model.read(optimized(find("nvidia"), "residual").artifact)
    (add,) = [node for node in model.nodes if node.op_type == "Add"]
    last = model.summed(add)
    assert last is not None
    assert [model.grid(value) is None for value in add.input].count(True) == 1
    assert [reader.op_type for reader in model.behind(last, sums=True)] == ["QuantizeLinear"]
    layers = list(model.layers())
    assert all(model.grid(value) is not None for node in layers for value in node.input[:2])
    assert {model.constants[node.input[2]].dtype.name for node in layers} == {"float32"}


@pytest.mark.thorough
def test_of_two_layers_that_are_added_the_last_one_is_not_rounded() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.first(x) + self.second(x))

    done = graphopt.optimize(Two().eval(), images(2), target="nvidia", calibration=[images(8)], measure=False)
    model = Model.read(done.artifact)
    (add,) = [node for node in model.nodes if node.op_type == "Add"]
    last = model.summed(add)
    assert last is not None
    assert list(model.layers()).index(last) == 1
    assert graphopt.check(done.artifact, "nvidia") == []


@pytest.mark.thorough
def test_what_another_runtime_likes_is_named() -> None:
    rules = {v.rule for v in graphopt.check(optimized(find("sigmastar"), "residual").artifact, "nvidia")}
    assert rules == {"bias-codes", "split-sum"}
    rules = {v.rule for v in graphopt.check(optimized(find("nvidia"), "residual").artifact, "sigmastar")}
    assert rules == {"bias-float", "float-result", "mixed-operands"}


class Tokens(nn.Module):
    """Linear layers over [N, T, C], and what no target computes in integer between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.conv(x)).flatten(2).transpose(1, 2))
        return torch.softmax(self.down(nn.functional.gelu(self.up(y))).mean(1), -1)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["nvidia", "hexagon", "sigmastar", "ceva", "vitis", "x86"])
def test_linear_layers_over_tokens_obey_and_count_as_integer(name: str) -> None:
    done = graphopt.optimize(Tokens().eval(), images(2), target=name, calibration=[images(8)], measure=False)
    assert graphopt.check(done.artifact, name) == []
    assert done.report.integer_macs == 1.0


@pytest.mark.thorough
def test_tensorrt_gets_what_stays_float_in_float16() -> None:
    done = graphopt.optimize(Tokens().eval(), images(2), target="nvidia", calibration=[images(8)], measure=False)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(done.artifact.folder / "model.onnx")))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Gelu", "ReduceMean", "Softmax"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT16
    assert types[model.graph.output[0].name] == onnx.TensorProto.FLOAT
    x = images(4, seed=9)
    with torch.no_grad():
        exact, simulated = Tokens().eval()(x), graphopt.simulate(done.graph, "nvidia")(x)
    torch.testing.assert_close(simulated, done.graph(x))
    torch.testing.assert_close(done.artifact(x), simulated, rtol=0, atol=2e-3)  # float16 rounds to 2^-11
    torch.testing.assert_close(simulated, exact, rtol=0, atol=1e-2)


@pytest.mark.thorough
def test_the_rest_can_be_left_in_float32() -> None:
    wide = find("nvidia").replace(rest=None)
    done = graphopt.optimize(Tokens().eval(), images(2), target=wide, calibration=[images(8)], measure=False)
    assert "Cast" not in {node.op_type for node in Model.read(done.artifact).nodes}

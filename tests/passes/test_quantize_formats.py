"""Formats that are not uniform, in graphs: what Quantize makes of them, and every pass, tool and backend that meets them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import conv, images, model_of, target_of
from rewriting import apply, capture
from torch import nn

import graphopt
from graphopt.backends.onnxruntime import audit, lower
from graphopt.compiler import recipes
from graphopt.execution.reference import float_reference
from graphopt.formats import (
    BFLOAT16,
    FAKE_QUANTIZE,
    FLOAT16,
    BlockFloat,
    Codebook,
    FloatFormat,
    Format,
    LogFormat,
    NumberFormat,
)
from graphopt.ir.cost import sqnr
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.quantizers import is_quantizer, is_uniform, quantizer_of, quantizers
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.quantization import LayerFormat, MixedPrecision, Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.targets import find
from graphopt.utils.errors import InputError

X86 = find("x86")
KINDS: list[NumberFormat] = [LogFormat(8), BlockFloat(8), Codebook(6, per_channel=True), FLOAT16, BFLOAT16]
ALL = pytest.mark.parametrize("format", KINDS, ids=str)


def quantized(model: nn.Module, weights: Any = None, values: Any = None, **options: Any) -> Graph:
    graph = capture(model, images(2))
    apply(FoldBatchNorm(), graph)
    data = [[images(16)]]
    assert apply(
        Quantize(X86, data, **{"estimator": "minmax", "weights": weights, "activations": values, **options}), graph
    )
    return graph


def layers(graph: Graph) -> list[Layer]:
    return [layer for node in graph.calls() if (layer := Layer.of(node))]


def placed(graph: Graph) -> list[tuple[str, bool]]:
    """Whatever is rounded, and whether it is a constant; biases left out, which are uniform or float."""
    biases = {layer.bias for layer in layers(graph)}
    return [(str(n.args[0]), graph.is_constant(n.args[0])) for n in quantizers(graph) if n not in biases]


@pytest.mark.thorough
@ALL
@pytest.mark.parametrize("name", ["inverted residual", "squeeze-excite linear"])
def test_placement_is_that_of_integers_and_the_answer_near_float(name: str, format: NumberFormat) -> None:
    model, x = model_of(name), images(8, seed=4)
    graph = quantized(model, format, format)
    assert placed(graph) == placed(quantized(model))
    for layer in layers(graph):
        assert quantizer_of(graph, layer.weight).format == format
        assert layer.bias is None or graph.is_constant(layer.bias), "no common step to add a bias in"
    with torch.no_grad():
        assert sqnr(model(x), graph(x)) > 25


@pytest.mark.thorough
def test_a_layer_and_its_values_have_the_format_its_name_is_given() -> None:
    formats = {"second.0": LayerFormat(LogFormat(6), BlockFloat(8, block=4)), "head": None}
    graph = quantized(model_of("plain"), formats=formats)
    found = {graph.site(layer.node): layer for layer in layers(graph)}
    assert quantizer_of(graph, found["second.0"].weight).format == LogFormat(6)
    assert is_uniform(found["first.0"].weight)
    assert not is_quantizer(found["head"].weight)
    values = {str(quantizer_of(graph, n).format) for n in quantizers(graph) if not graph.is_constant(n.args[0])}
    assert values == {"u8 affine per tensor", "block float 8 in blocks of 4"}


def test_blocks_lie_along_what_a_product_sums_over() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8, groups=8), nn.Flatten(2), nn.Linear(64, 6))
    graph = quantized(model, BlockFloat(8), BlockFloat(8))
    weights = {graph.site(layer.node): quantizer_of(graph, layer.weight).axis for layer in layers(graph)}
    assert weights == {"0": 1, "1": 3, "3": 1}  # a depthwise kernel has one input: its last dimension
    axes = {str(n.args[0]): quantizer_of(graph, n).axis for n in quantizers(graph) if not graph.is_constant(n.args[0])}
    assert [axes[name] for name in ("input_1", "conv2d")] == [1, 1]
    assert quantizer_of(graph, layers(graph)[-1].input).axis == 2


@pytest.mark.thorough
def test_memory_stays_flat_because_statistics_are_streamed() -> None:
    """One batch or many: the same ranges, from a generator that is never held whole."""
    x = images(24)
    graphs = []
    for parts in ([[x]], ([part] for part in x.split(4))):
        graph = capture(model_of("plain"), images(2))
        apply(Quantize(X86, parts, activations=LogFormat(8), estimator="mse"), graph)
        graphs.append(graph.state_dict())
    assert all(torch.equal(value, graphs[1][name]) for name, value in graphs[0].items())


def test_values_beyond_float16_are_refused_with_their_place() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    with torch.no_grad():
        model[0].weight *= 1e6
    with pytest.raises(InputError, match=r"activations of '[01]': .* is beyond the largest float16 number, 65504"):
        quantized(model, values=FLOAT16)
    with pytest.raises(InputError, match=r"weight '0.weight': .* is beyond the largest float16 number"):
        quantized(model, FLOAT16)


@pytest.mark.thorough
@ALL
def test_gradients_reach_the_weights_and_a_second_run_does_nothing(format: NumberFormat) -> None:
    graph = quantized(model_of("plain"), format, format)
    graph.train()
    graph(images(4)).square().sum().backward()
    for layer in layers(graph):
        weight = graph.parameter(layer.weight.args[0])  # type: ignore[arg-type]
        assert weight.grad is not None
        assert bool(weight.grad.any())
    assert apply(Quantize(X86, [[images(2)]], weights=format), graph) == []


@ALL
def test_a_saved_graph_answers_the_same(format: NumberFormat, tmp_path: Path) -> None:
    graph, x = quantized(model_of("plain"), format, format), images(4)
    graph.save(tmp_path / "graph")
    with torch.no_grad():
        assert torch.equal(Graph.load(tmp_path / "graph")(x), graph(x))


# ---- Passes that read quantizers ------------------------------------------------------------------------------------


@pytest.mark.thorough
@ALL
def test_bias_correction_centres_the_error(format: NumberFormat) -> None:
    coarse = (
        LogFormat(4),
        BlockFloat(3),
        Codebook(2),
        FloatFormat(4, 2),
        FloatFormat(5, 1),
    )  # so that there is an error
    few = coarse[KINDS.index(format)]
    graph, x = quantized(model_of("plain"), few), images(256)
    model = model_of("plain")
    with torch.no_grad():
        before = (graph(x) - model(x)).mean(0).abs().max()
        changes = apply(CorrectBias([[x]]), graph)
        after = (graph(x) - model(x)).mean(0).abs().max()
    assert len(changes) == 3
    assert after < before
    assert apply(CorrectBias([[x]]), graph) == []


@pytest.mark.thorough
@ALL
def test_learn_rounding_refuses_or_leaves_alone(format: NumberFormat) -> None:
    with pytest.raises(InputError, match=r"whose codes LearnRounding does not choose; it is for uniform formats"):
        LearnRounding([[images(8)]])(quantized(model_of("plain"), format))
    graph = quantized(model_of("plain"), Format(4, per_channel=True), format, formats={"second.0": LayerFormat(format)})
    left = [change for change in apply(LearnRounding([[images(16)]]), graph) if "left as it is" in change.what]
    assert [change.site for change in left] == ["second.0"]
    with torch.no_grad():
        assert math.isfinite(float(graph(images(2)).sum()))
    assert apply(LearnRounding([[images(16)]]), graph) == []


@pytest.mark.thorough
@ALL
def test_other_passes_keep_going(format: NumberFormat) -> None:
    graph, x = quantized(model_of("residual"), format, format), images(8)
    with torch.no_grad():
        wanted = graph(x)
        assert apply(RefineRanges([[x]]), graph) == []  # there is no step to refine
        apply(Simplify(), graph)
        assert torch.equal(graph(x), wanted)
        assert torch.equal(float_reference(graph)(x), float_reference(quantized(model_of("residual")))(x))
    assert apply(MixedPrecision(X86, [[x]], average_bits=5.0), graph) == []


def test_mixed_precision_refuses_targets_in_other_formats() -> None:
    own = X86.formats.weights
    with pytest.raises(ValueError, match="chooses bits of uniform formats, but the weights of target 'x86' are log8"):
        MixedPrecision(X86.replace(weights=LogFormat(8)), [[images(2)]], average_bits=4)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="average_bits and weight_only choose bits of uniform formats, but 'head' is to have"
    ):
        recipes.weight_bits(own, {"head": LayerFormat(LogFormat(8))})
    assert recipes.fewest_bits(own, {"head": LayerFormat(LogFormat(4))}) == 8


# ---- Tools and backends ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
@ALL
def test_analysis_measures_every_format(format: NumberFormat, tmp_path: Path) -> None:
    graph, x = quantized(model_of("plain"), format, format), images(8)
    analysis = graphopt.analyze(graph, x)
    assert all(layer.weight_bits in (None, format.bits) for layer in analysis.layers)
    for value in analysis.tensors:
        assert value.bits == format.bits
        assert value.sqnr_db > 20
        assert 1 < value.used <= value.codes
        assert value.clipped < 0.01
    weight = next(value for value in analysis.tensors if value.name == "first.0.weight")
    layer = layers(graph)[0]
    float_weight = graph.tensor(layer.weight.args[0])  # type: ignore[arg-type]
    assert weight.sqnr_db == pytest.approx(
        sqnr(float_weight, quantizer_of(graph, layer.weight)(float_weight)), abs=1e-3
    )
    analysis.save(tmp_path / "analysis.json")
    assert len(analysis.plot(tmp_path, worst=2)) >= 2


@pytest.mark.thorough
@pytest.mark.parametrize("format", [LogFormat(8), Codebook(6, per_channel=True)], ids=str)
def test_lowering_keeps_rounded_weights_in_float_and_says_why(format: NumberFormat) -> None:
    graph, x = quantized(model_of("plain"), format), images(8, seed=5)
    artifact = lower(graph, X86)
    with torch.no_grad():
        wanted = graph(x)
    assert sqnr(wanted, artifact(x)) > 60  # values are integers as before, but for ties
    found = audit(artifact)
    assert found.integer == []
    reasons = {operator.reason for operator in found.floating if operator.macs}
    assert reasons == {f"its weights are in {format}, which has no integer operator"}


@pytest.mark.thorough
@pytest.mark.parametrize("format", [BlockFloat(8), FLOAT16], ids=str)
def test_values_in_other_formats_are_float_in_an_artifact(format: NumberFormat) -> None:
    graph, x = quantized(model_of("residual"), BFLOAT16, format), images(8, seed=5)
    with torch.no_grad():
        twin = quantized(model_of("residual"), BFLOAT16, BFLOAT16)
        for node in quantizers(twin):
            if not twin.is_constant(node.args[0]):
                twin.replace(node, node.args[0])  # type: ignore[arg-type]
        twin.refresh()
        torch.testing.assert_close(lower(graph, X86)(x), twin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_simulating_integers_refuses_what_has_none() -> None:
    graph = quantized(model_of("plain"), LogFormat(8))
    with pytest.raises(
        InputError, match="is in log8 16 to an octave per tensor, of which there are no integers to simulate"
    ):
        graphopt.simulate(graph, "x86")


@pytest.mark.thorough
def test_one_call_with_a_log_layer_reports_it_as_float() -> None:
    model = model_of("plain")
    result = graphopt.optimize(
        model,
        images(2),
        target=target_of("x86"),
        calibration=images(8),
        formats={"second.0": LayerFormat(LogFormat(8))},
        measure=False,
    )
    assert any("log8" in line and "second.0" in line for line in str(result.report).splitlines())
    assert result.graph.calls(FAKE_QUANTIZE)
    with torch.no_grad():
        x = images(8)
        assert sqnr(model(x), result.artifact(x)) > 25


# ---- Real images ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "values", "points"),
    [
        (LogFormat(8), None, 1.0), (LogFormat(8), LogFormat(8), 1.0), (BlockFloat(8), BlockFloat(8), 1.0),
        (Format(8, power_of_two=True), Format(8, power_of_two=True), 0.5),
        (Format(16, per_channel=True), Format(16, signed=False, symmetric=False), 0.1), (FLOAT16, FLOAT16, 0.1),
    ],
    ids=["log 8 weights", "log 8", "block float 8", "powers of two", "16 bits", "float16"],
)  # fmt: skip
def test_resnet20_keeps_its_accuracy(zoo: Any, weights: Any, values: Any, points: float) -> None:
    x, y = (part[:2000] for part in zoo.cifar10("test"))
    typical = zoo.cifar10("train10k")[0][:256]
    model = zoo.cifar_resnet(20)
    graph = capture(model, typical[:2])
    batches = [[part] for part in typical.split(64)]
    for transform in (
        *recipes.prepare(X86),
        Quantize(X86, batches, weights=weights, activations=values),
        CorrectBias(batches),
    ):
        apply(transform, graph)

    def accuracy(network: Any) -> float:
        with torch.no_grad():
            right = [(network(a).argmax(1) == b).sum() for a, b in zip(x.split(250), y.split(250), strict=True)]
        return 100 * float(torch.stack(right).sum()) / len(y)

    assert accuracy(graph) >= accuracy(model) - points

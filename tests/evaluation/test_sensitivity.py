"""Which layer is it? Compared with quantizing by hand, one layer at a time."""

import math
from typing import Any

import blocks
import pytest
import torch
from sensitive import X86, Small, images, quantized
from torch import Tensor, fx, nn

import graphopt
from graphopt.data.calibration import Calibration
from graphopt.evaluation.sensitivity import Analysis, Fidelity
from graphopt.formats import FAKE_QUANTIZE, Format
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.ops import family
from graphopt.ir.quantized_units import units
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.passmanager.runner import run

TWO_BITS = LayerFormat(Format(2, per_channel=True))


class Some(fx.Interpreter):
    """Runs a graph with only some of its quantizers, and keeps every value."""

    def __init__(self, graph: Graph, active: set[fx.Node]) -> None:
        super().__init__(graph.module)
        self.active, self.seen = active, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        bypassed = n.target is FAKE_QUANTIZE and n not in self.active
        value = n.args[0].meta.get("float_reference", self.env[n.args[0]]) if bypassed else super().run_node(n)  # type: ignore[union-attr, index]
        self.seen[n] = value
        return value


def by_hand(graph: Graph, active: set[fx.Node], x: Tensor) -> dict[fx.Node, Any]:
    interpreter = Some(graph, active)
    with torch.no_grad():
        interpreter.run(x, enable_io_processing=False)
    return interpreter.seen


def close(found: Fidelity, reference: Tensor, value: Tensor) -> None:
    r, v = reference.double().flatten(), value.double().flatten()
    assert found.sqnr_db == pytest.approx(cost.sqnr(r, v), abs=1e-3)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(r, v, dim=0)), abs=1e-6)


# ---- The numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [Format(8, per_channel=True), Format(4)])
def test_every_number_is_that_of_quantizing_by_hand(weights: Format) -> None:
    x = images()
    graph = quantized(Small(), weights=weights)
    analysis = graphopt.analyze(graph, x.split(7), output_samples=10)
    assert (analysis.samples, analysis.output_samples) == (24, 10)
    compare_by_hand(graph, analysis, x)


@pytest.mark.thorough
@pytest.mark.parametrize("block", ["residual", "concat", "relu6", "squeeze-excite", "silu residual"])
def test_so_it_is_in_blocks_of_real_networks(block: str) -> None:
    x = blocks.images(10)
    graph = blocks.simulated(blocks.model_of(block), X86)
    owned = [q for unit in units(graph) for q in unit.quantizers]
    assert sorted(owned) == sorted(graph.calls(FAKE_QUANTIZE))
    compare_by_hand(graph, graphopt.analyze(graph, x), x)
    with torch.no_grad():  # with nothing quantized it is the network that was captured, corrected biases or not
        torch.testing.assert_close(by_hand(graph, set(), x)[graph.outputs[0]], blocks.model_of(block)(x))


def compare_by_hand(graph: Graph, analysis: Analysis, x: Tensor) -> None:
    quantizers = set(graph.calls(FAKE_QUANTIZE))
    position = {node: number for number, node in enumerate(graph.nodes)}
    exact, full, output = by_hand(graph, set(), x), by_hand(graph, quantizers, x), graph.outputs[0]
    found = units(graph)
    assert [unit.name for unit in found] == [layer.name for layer in analysis.layers]
    for unit, layer in zip(found, analysis.layers, strict=True):
        alone = by_hand(graph, unit.quantizers, x)
        until = by_hand(graph, {q for q in quantizers if position[q] <= position[unit.end]}, x)
        close(layer.alone.here, exact[unit.end], alone[unit.end])
        close(layer.cumulative.here, exact[unit.end], full[unit.end])
        count = analysis.output_samples
        close(layer.alone.output, exact[output][:count], alone[output][:count])
        close(layer.cumulative.output, exact[output][:count], until[output][:count])


@pytest.mark.thorough
def test_layers_own_their_quantizers() -> None:
    graph = quantized(Small())
    found = {unit.name: unit for unit in units(graph)}
    assert list(found) == ["x", "first", "second", "add", "third", "mean", "head"]
    owned = [q for unit in found.values() for q in unit.quantizers]
    assert sorted(owned) == sorted(graph.calls(FAKE_QUANTIZE)), "each belongs to exactly one"
    kinds = {name: (unit.operator, len(unit.quantizers)) for name, unit in found.items()}
    assert kinds["x"] == ("input", 1)
    assert kinds["first"] == ("conv", 3), "weight, bias, and the value behind the relu"
    assert kinds["add"] == ("add", 2), "its own, and what the max pool repeats"
    assert kinds["third"] == ("conv", 2), "no bias"
    assert kinds["head"] == ("linear", 2), "leaves in float"


@pytest.mark.thorough
def test_a_move_onto_another_grid_is_no_repetition() -> None:
    graph = quantized(Small())
    pool = next(node for node in graph.calls() if family(node) == "max_pool")
    (quantizer,) = pool.users
    scale = graph.tensor(quantizer.args[1])  # type: ignore[arg-type]
    graph.set_constant(quantizer, 1, 2 * scale)
    assert "max_pool" in [unit.name for unit in units(graph)]


@pytest.mark.thorough
def test_an_end_per_channel_belongs_to_its_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3))
    graph = Graph.capture(model.eval(), (images()[:2],))
    clip = next(node for node in graph.calls() if family(node) == "clamp")
    low, high = (
        graph.add_constant(name, torch.full((1, 4, 1, 1), end), before=clip) for name, end in (("l", 0.0), ("h", 6.0))
    )
    graph.replace(clip, graph.call(torch.ops.aten.clamp.Tensor, clip.args[0], low, high, before=clip))
    graph.refresh()
    run([Quantize(X86, Calibration(images(), graph))], graph)
    assert [unit.name for unit in units(graph)] == ["input", "0", "2"]


@pytest.mark.thorough
def test_the_last_layer_has_the_whole_networks_error() -> None:
    x, graph = images(), quantized(Small())
    twin = by_hand(graph, set(), x)[graph.outputs[0]]
    last = graphopt.analyze(graph, x).layers[-1]
    close(last.cumulative.output, twin, graph(x).detach())
    assert last.cumulative.here == last.cumulative.output


@pytest.mark.thorough
def test_batches_of_any_size_give_the_same() -> None:
    x, graph = images(), quantized(Small())
    whole, parts = graphopt.analyze(graph, x), graphopt.analyze(graph, list(x.split(5)))
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert a.alone.output.sqnr_db == pytest.approx(b.alone.output.sqnr_db, abs=1e-2)
    assert [v.clipped for v in whole.tensors] == [v.clipped for v in parts.tensors]


@pytest.mark.thorough
def test_a_fixed_batch_is_not_cut() -> None:
    graph = quantized(Small(), dynamic_batch=False)
    analysis = graphopt.analyze(graph, images(), output_samples=6)
    assert (analysis.samples, analysis.output_samples) == (24, 8), "two batches of four"


def test_several_outputs_are_judged_by_the_worst() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"big": 1000 * self.left(x), "small": self.right(x)}

    graph = quantized(Two(), formats={"right": TWO_BITS})
    layers = {layer.name: layer for layer in graphopt.analyze(graph, images()).layers}
    assert layers["right"].alone.output.sqnr_db < 12
    assert layers["left"].alone.output.sqnr_db > 30


@pytest.mark.thorough
def test_the_graph_stays_as_it_was() -> None:
    graph = quantized(Small())
    before, state = str(graph), {k: v.clone() for k, v in graph.state_dict().items()}
    graph.train()
    graphopt.analyze(graph, images())
    assert graph.training
    assert str(graph.eval()) == before
    assert all(torch.equal(v, state[k]) for k, v in graph.state_dict().items())


# ---- Finding the culprit --------------------------------------------------------------------------------------------


def test_a_layer_of_two_bits_ranks_first_and_is_found() -> None:
    analysis = graphopt.analyze(quantized(Small(), formats={"third": TWO_BITS}), images())
    assert analysis.ranked()[0].name == "third"
    bad = analysis.first_bad(15)
    assert bad is not None
    assert (bad.name, bad.weight_bits, bad.activation_bits) == ("third", 2, 8)
    assert analysis.first_bad(-100) is None
    assert analysis.worst_tensors()[0].name == "third.weight"


def test_the_first_bad_layer_is_judged_by_what_has_piled_up() -> None:
    analysis = graphopt.analyze(quantized(Small(), weights=Format(4)), images())
    piled = [layer.cumulative.here.sqnr_db for layer in analysis.layers]
    index = next(i for i, layer in enumerate(analysis.layers) if piled[i] < layer.alone.here.sqnr_db - 1)
    before = min([*piled[:index], analysis.layers[index].alone.here.sqnr_db])
    assert analysis.first_bad((piled[index] + before) / 2) is analysis.layers[index]


def test_a_channel_blown_up_under_one_scale_per_tensor_is_found() -> None:
    model = Small()
    with torch.no_grad():
        model.second.weight[3] *= 300
        model.second.bias[3] = 0  # type: ignore[index]
        model.third.weight[:, 3] /= 300  # behind it the other channels count as before
    graph = quantized(model, weights=Format(8))
    analysis = graphopt.analyze(graph, images())
    assert "second" in [layer.name for layer in analysis.ranked()[:2]]  # the sum with it suffers as much
    weights = [value for value in analysis.worst_tensors() if value.kind == "weight"]
    codes = {value.name: value.used for value in weights}
    assert codes["second.weight"] < codes["first.weight"], "most weights share the few codes around zero"


def test_float_layers_are_listed_as_float_and_cost_nothing() -> None:
    analysis = graphopt.analyze(quantized(Small(), formats={"third": None}), images())
    layer = next(layer for layer in analysis.layers if layer.name == "third")
    assert layer.is_float
    assert layer.alone == (Fidelity(math.inf, 1.0), Fidelity(math.inf, 1.0))
    assert layer.cumulative.here.sqnr_db < 60, "what it reads is quantized"
    assert analysis.ranked()[-1] is layer
    assert any(line.split()[:4] == ["third", "float", "equal", "equal"] for line in str(analysis).splitlines())
    assert "third stays float: excluded by name" in str(analysis)


# ---- Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_histograms_count_every_element_and_what_is_clipped() -> None:
    x = images()
    graph = quantized(Small())
    exact = by_hand(graph, set(), x)
    found = {(v.kind, v.name): v for v in graphopt.analyze(graph, x.split(5)).tensors}
    for unit in units(graph):
        for kind, quantizer in (("weight", unit.weight), ("activation", unit.value)):
            if quantizer is None:
                continue
            _, scale, zero_point, low, high, axis = quantizer.args
            data, s, z = exact[quantizer].detach(), graph.tensor(scale), graph.tensor(zero_point)
            shape = [-1 if d == axis else 1 for d in range(data.dim())] if axis >= 0 else []
            codes = (data / s.reshape(shape)).round() + z.reshape(shape)
            value = found[kind, str(quantizer.args[0].target) if kind == "weight" else unit.name]
            assert value.counts.sum() == data.numel()
            assert (value.smallest, value.largest) == (float(data.min()), float(data.max()))
            assert value.clipped == pytest.approx(float(((codes < low) | (codes > high)).double().mean()))
            assert value.used == len(codes.clamp(low, high).unique())
            assert (value.codes, value.channels) == (high - low + 1, s.numel())
            assert value.low == pytest.approx(float(((low - z) * s).min()))
            assert value.high == pytest.approx(float(((high - z) * s).max()))
            rounded = (codes.clamp(low, high) - z.reshape(shape)) * s.reshape(shape)
            assert value.sqnr_db == pytest.approx(cost.sqnr(data, rounded), abs=1e-3)


def test_values_beyond_the_calibrated_range_are_clipped() -> None:
    graph = quantized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.rand(8, 3, 4, 4), estimator="minmax")
    x = torch.rand(8, 3, 4, 4)
    x[:2] = 3.0
    value = graphopt.analyze(graph, x).tensors[0]
    assert (value.kind, value.clipped) == ("activation", 0.25)
    assert value.counts[value.edges[:-1] > value.high].sum() == 2 * 3 * 4 * 4


@pytest.mark.thorough
def test_a_large_value_is_counted_whole() -> None:
    x = torch.rand(1, 3, 900, 900)  # more elements than other histograms take from one batch
    x[0, 0, 0, 1] = 7.0  # where those would look past it
    value = graphopt.analyze(quantized(nn.Conv2d(3, 2, 1), x, dynamic_batch=False), x).tensors[0]
    assert value.counts.sum() == x.numel()
    assert value.counts[value.edges[1:] >= 7].sum() == 1


# ---- Codes chosen on data -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_codes_chosen_on_data_are_compared_with_the_weights_they_stand_for() -> None:
    x, model = images(), Small().eval()
    four = X86.replace(weights=Format(4, per_channel=True))
    done = graphopt.optimize(model, x[:4], target=four, calibration=x, rounding="gptq", measure=False)
    found = {value.name: value for value in graphopt.analyze(done.graph, x).tensors if value.kind == "weight"}
    for name, weight in model.named_parameters():
        if name.endswith("weight"):
            quantizer = next(n for n in done.graph.calls(FAKE_QUANTIZE) if str(n.args[0].target).startswith(name))
            rounded = quantizer.target(*(done.graph.tensor(a) if hasattr(a, "op") else a for a in quantizer.args))
            error = (rounded - weight).square().sum() / weight.square().sum()
            assert found[name].sqnr_db == pytest.approx(float(-10 * torch.log10(error.detach())), abs=0.05)
            assert found[name].used <= 15


@pytest.mark.thorough
def test_weights_of_few_bits_in_blocks_are_analyzed() -> None:
    x = torch.randn(24, 64, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10)).eval()
    for bits in (4, 8):
        done = graphopt.optimize(model, x[:4], target=X86, calibration=x, weight_only=bits, measure=False)
        analysis = graphopt.analyze(done.graph, x)
        weights = [value for value in analysis.tensors if value.kind == "weight"]
        assert [value.bits for value in weights] == [bits, bits]
        assert all(6 * bits - 12 < value.sqnr_db < 6 * bits + 6 for value in weights)
        assert all(layer.alone.output.sqnr_db < 6 * bits + 18 for layer in analysis.layers)

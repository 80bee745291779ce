"""Roundings learned on data."""

from __future__ import annotations

import pytest
import torch
from learned_rounding import BATCHES, residual, simulated
from rewriting import capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.data.calibration import Calibration
from graphopt.execution.executor import Executor
from graphopt.execution.streaming import Frontier
from graphopt.fitting import samples as fitting_samples
from graphopt.fitting.samples import Samples
from graphopt.formats import FAKE_QUANTIZE, Format, quantize
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.codes import Codes
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passes.rounding.relaxed import RelaxedRounding
from graphopt.targets import find
from graphopt.utils.errors import InputError


def bypassed(graph: Graph) -> Graph:
    twin = graph.clone()
    for node in twin.calls(FAKE_QUANTIZE):
        twin.replace(node, node.args[0])  # type: ignore[arg-type]
    twin.refresh()
    return twin


def error(graph: Graph, twin: Graph, data: list[list[Tensor]] = BATCHES) -> float:
    with torch.no_grad():
        return sum(float((graph(*b) - twin(*b)).square().sum()) for b in data)


def learned(graph: Graph, **options: object) -> Graph:
    found = graph.clone()
    assert LearnRounding(BATCHES, **({"method": "adaround", "iterations": 20, "batch": 16} | options))(found)  # type: ignore[arg-type]
    found.refresh()
    return found


OPTIONS = [
    {"method": "gptq"}, {"method": "bit_split"}, {"unit": "layer"}, {"unit": "block"}, {"importance": True},
    {"learn_steps": False}, {"method": "adaquant", "unit": "layer"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_comes_nearer_to_float_and_weights_lie_on_their_grid(options):
    graph = simulated()
    twin, found = bypassed(graph), learned(graph, **options)
    assert error(found, twin) < 0.5 * error(graph, twin)
    before = {str(n.target): graph.tensor(n) for n in graph.nodes if graph.is_constant(n)}
    stayed = 0  # the stem may: its input is white noise, under which nearest rounding is as good as any
    for node in found.calls(FAKE_QUANTIZE):
        if found.is_constant(node.args[0]) and found.tensor(node.args[0]).dim() > 1:
            if torch.equal(found.tensor(node.args[0]), before[str(node.args[0].target)]):
                stayed += 1
                continue
            weight, scale, zero = (found.tensor(a) for a in node.args[:3])
            codes = quantize(weight, scale, zero, *node.args[3:])
            back = codes * scale.reshape(-1, *[1] * (weight.dim() - 1))
            assert torch.equal(back, weight)
            assert codes.min() >= -7
            assert codes.max() <= 7
    assert stayed <= 1


@pytest.mark.thorough
def test_without_learned_steps_no_scale_changes():
    graph = simulated()
    found = learned(graph, learn_steps=False)
    scales = [[g.tensor(n.args[1]) for n in g.calls(FAKE_QUANTIZE)] for g in (graph, found)]
    assert all(torch.equal(one, other) for one, other in zip(*scales, strict=True))


@pytest.mark.thorough
def test_every_layer_is_nearer_to_float_than_by_nearest_rounding():
    """But for the stem: its input is white noise, under which nearest rounding is as good as any, and it may stay."""
    graph = simulated()
    twin, found = bypassed(graph), learned(graph, method="gptq", learn_steps=False)
    for name in ("stem", "a", "b", "c", "d"):
        lost = []
        for g in (graph, found):
            node, source = (
                next(n for n in h.calls(torch.ops.aten.conv2d.default) if h.site(n) == name) for h in (g, twin)
            )
            lost.append(
                sum(
                    float((Executor(g).run([node], b)[node] - Executor(twin).run([source], b)[source]).square().sum())
                    for b in BATCHES
                )
            )
        assert lost[1] < lost[0] or (name == "stem" and lost[1] == lost[0]), name


@pytest.mark.thorough
def test_biases_stay_on_the_accumulators_grid():
    found = learned(simulated())
    for node in found.calls(torch.ops.aten.conv2d.default):
        steps = [found.tensor(a.args[1]) for a in node.args[:3]]
        assert torch.equal(steps[2], steps[0] * steps[1])


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"method": "gptq"}, {"unit": "block"}], ids=str)
def test_simulation_and_artifact_agree(options):
    found = learned(simulated(), **options)
    x = BATCHES[0][0]
    artifact, integers = lower(found, find("x86")), graphopt.simulate(found, target="x86")
    with torch.no_grad():
        wanted = found(x)
    for answer in (artifact(x), integers(x)):
        assert (torch.as_tensor(answer) - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_graph_from_memory_and_from_files(tmp_path):
    graph = simulated()
    plain, spilled = learned(graph), learned(graph, memory=0, folder=tmp_path)
    assert plain.state_dict().keys() == spilled.state_dict().keys()
    assert all(torch.equal(v, spilled.state_dict()[k]) for k, v in plain.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_names_stay_and_a_second_run_does_nothing():
    graph = simulated()
    found = learned(graph)
    assert found.state_dict().keys() == graph.state_dict().keys()
    assert str(found) == str(graph)
    assert LearnRounding(BATCHES, batch=16)(found) == []


@pytest.mark.thorough
def test_a_fixed_batch_a_depthwise_convolution_and_a_shared_scale_are_learned_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    graph = capture(model, BATCHES[0][0], dynamic_batch=False)
    Quantize(find("x86"), BATCHES, weights=Format(bits=4))(graph)
    graph.refresh()
    twin, found = bypassed(graph), learned(graph)
    assert error(found, twin) < 0.85 * error(graph, twin)


def test_batches_of_a_fixed_size_are_computed_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    batches, taken, take = [[part] for (batch,) in BATCHES for part in batch.split(4)], [], Samples.take
    monkeypatch.setattr(Samples, "take", lambda self, picked: taken.append(len(picked)) or take(self, picked))
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), batches[0][0], dynamic_batch=False
    )
    Quantize(find("x86"), batches, weights=Format(bits=4))(graph)
    graph.refresh()
    assert LearnRounding(batches, method="adaround", iterations=2, batch=4)(graph)
    assert set(taken) == {1}


@pytest.mark.thorough
def test_large_values_in_small_parts_are_learned_alike(monkeypatch: pytest.MonkeyPatch):
    graph = simulated()
    whole = learned(graph, iterations=3)
    monkeypatch.setattr(fitting_samples, "SMALL", 1)
    parts = learned(graph, iterations=3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_layer_without_bias_is_fitted_around_zero():
    graph = simulated(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)))
    assert error(learned(graph, method="gptq"), bypassed(graph)) < 0.75 * error(graph, bypassed(graph))


# ---- Going on after an interruption ---------------------------------------------------------------------------------


@pytest.mark.thorough
def test_interrupted_work_goes_on_where_it_stopped(tmp_path, monkeypatch):
    graph, calls, stop = simulated(), [], 9
    whole, learn, choose = learned(graph, unit="layer"), RelaxedRounding.solve, Codes.solve

    def counted_learn(self, *args):
        calls.append("unit")
        if len(calls) == stop:
            raise KeyboardInterrupt
        return learn(self, *args)

    def counted_fit(self, *args):
        calls.append("layer")
        return choose(self, *args)

    monkeypatch.setattr(RelaxedRounding, "solve", counted_learn)
    monkeypatch.setattr(Codes, "solve", counted_fit)
    with pytest.raises(KeyboardInterrupt):
        learned(graph, unit="layer", checkpoint=tmp_path)
    assert calls == ["layer"] * 6 + ["unit"] * 3

    calls, stop = [], None
    again = learned(graph, unit="layer", checkpoint=tmp_path)
    assert calls == ["unit"] * 4  # six layers and two units were written down
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())

    calls = []
    learned(graph, unit="layer", checkpoint=tmp_path, seed=1)
    assert calls == ["layer"] * 6 + ["unit"] * 6  # another task in the same folder


@pytest.mark.thorough
def test_a_damaged_checkpoint_is_named(tmp_path):
    graph = simulated()
    learned(graph, method="gptq", checkpoint=tmp_path)
    piece = next(tmp_path.glob("*/rounding_layers_2.pt"))
    piece.write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"rounding_layers_2\.pt is damaged; remove it"):
        learned(graph, method="gptq", checkpoint=tmp_path)


def test_a_walk_reads_a_changed_weight_behind_its_quantizer():
    graph = simulated()
    node = graph.calls(torch.ops.aten.conv2d.default)[0]
    walk = Frontier(graph, BATCHES[:1])
    walk.before(node, [node.args[0]])
    quantizer = node.args[1]
    graph.set_constant(quantizer, 0, torch.zeros_like(graph.tensor(quantizer.args[0])))
    ((result,),) = walk.before(min(node.users), [node])
    assert result.std((0, 2, 3)).max() < 1e-5


# ---- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_mistakes_are_named():
    graph = simulated()
    for options, words in (
        ({"iterations": 0}, "iterations must be a whole number of at least 1"),
        ({"method": "best"}, "method must be one of gptq, bit_split, adaround, adaquant"),
        ({"unit": "network"}, "unit must be one of layer, block"),
        ({"warmup": 1.0}, "warmup must be at least 0 and under 1"),
    ):
        with pytest.raises(ValueError, match=words):
            LearnRounding(BATCHES, **options)
    with pytest.raises(ValueError, match="give a list"):
        LearnRounding(Calibration(iter(BATCHES), graph))
    with pytest.raises(InputError, match="64 samples, fewer than a batch of 100"):
        LearnRounding(BATCHES, method="adaround", batch=100)(graph)
    affine = Format(bits=4, symmetric=False, per_channel=True)
    with pytest.raises(InputError, match="bit_split needs symmetric weights, those of 'stem' have a zero point"):
        LearnRounding(BATCHES, method="bit_split")(simulated(weights=affine))
    with pytest.raises(InputError, match="run Quantize before"):
        LearnRounding(BATCHES)(capture(residual(), BATCHES[0][0][:2]))
    CorrectBias(BATCHES)(graph)
    with pytest.raises(InputError, match="leave CorrectBias out"):
        LearnRounding(BATCHES)(graph)

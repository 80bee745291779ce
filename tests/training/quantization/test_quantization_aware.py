"""Quantization-aware training: what is attached answers what was there, what is left answers what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from capture_once import capture_once
from sparsifying import kept
from training import Stops, X, Y, accuracy, few_bits, network, simulated

import graphopt
from graphopt.data import Calibration
from graphopt.execution.executor import Executor
from graphopt.formats import BFLOAT16, BlockFloat, Codebook, Format, LogFormat
from graphopt.ir.facts import FLOAT_REFERENCE
from graphopt.ir.graph import Graph
from graphopt.ir.layer import Layer
from graphopt.ir.passes import Pass
from graphopt.ir.quantizers import UniformQuantizer, quantizers
from graphopt.passes import FoldBatchNorm
from graphopt.passes.factorization import Factorize
from graphopt.passes.quantization import LayerFormat, Quantize
from graphopt.passes.sparsity import Sparsify, masks
from graphopt.targets import find
from graphopt.training import Compression, QuantizationAware, Response, train
from graphopt.training.quantization import METHODS
from graphopt.utils.errors import InputError

TARGETS = {
    "per channel": few_bits(),
    "per tensor": few_bits(per_channel=False),
    "powers of two": find("ambarella"),
    "weights with zero points": find("ceva"),
    "float biases, symmetric activations": find("nvidia"),
}
EACH_TARGET = pytest.mark.parametrize(
    "target", [pytest.param(t, marks=[] if t == "per channel" else [pytest.mark.thorough]) for t in TARGETS]
)


def shaken(graph: Graph) -> None:
    """Move everything that trains, and the running statistics, as a training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.1 * noise if "power" in name else 0.05 * noise * parameter.abs().mean()
    graph.train()
    graph(X)
    graph.eval()


@pytest.mark.many
@EACH_TARGET
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_answers_before_and_behind_a_training_what_it_answers_inside(
    method: str, norms: bool, target: str
) -> None:
    graph = simulated(TARGETS[target])
    operators = sorted(str(node.target) for node in graph.calls())
    before = graph(X)
    data = Calibration(X, graph) if norms else None
    aware = QuantizationAware(method, data=data, accumulator_bits=32, batch_norms=norms)  # which bind nothing
    aware.attach(graph)
    torch.testing.assert_close(graph(X), before, atol=1e-5, rtol=1e-5)
    shaken(graph)
    aware.step(1.0)
    trained = graph(X)
    assert not torch.allclose(trained, before, atol=1e-3)
    aware.finish(graph)
    same = torch.isclose(graph(X), trained, atol=1e-5, rtol=1e-5)
    # Of sums of powers of two one in 64 lies exactly between two codes, where the last bit of float32 decides.
    assert float(same.double().mean()) >= (0.7 if target == "powers of two" else 1.0)
    torch.testing.assert_close(graph(X), trained, atol=0.01, rtol=0.01)
    assert sorted(str(node.target) for node in graph.calls()) == operators
    assert not [name for name, _ in graph.named_parameters() if "power" in name or "norm" in name]


@pytest.mark.many
@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_runs_as_it_was_simulated(method: str) -> None:
    target = few_bits()
    graph = simulated(target)
    report = train(
        graph, (X, Y), compress=[QuantizationAware(method)], epochs=2, batch_size=16, rate=5e-3,
        evaluate=accuracy,
    )  # fmt: skip
    assert report.gain is not None
    assert report.gain >= 0
    result = graphopt.optimize(graph, target=target, passes=[], measure=False)
    assert torch.equal(torch.as_tensor(result.artifact(X)), torch.as_tensor(graphopt.simulate(graph, target)(X)))
    torch.testing.assert_close(torch.as_tensor(result.artifact(X)), graph(X), atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["arm", "hexagon", "nvidia", "ambarella", "ceva", "tvm-x86"])
def test_what_was_trained_is_saved_and_simulated_for_every_runtime(target: str, tmp_path: Path) -> None:
    graph = simulated(find(target))
    train(graph, (X, Y), compress=[QuantizationAware()], epochs=1, batch_size=16)
    graph.save(tmp_path / "graph.pt2")
    assert torch.equal(Graph.load(tmp_path / "graph.pt2")(X), graph(X))
    answers = torch.as_tensor(graphopt.simulate(graph, target)(X))
    torch.testing.assert_close(answers, graph(X), atol=0.02 * float(graph(X).abs().max()), rtol=0.0)


def test_scales_and_offsets_are_learned_and_biases_follow() -> None:
    graph = simulated(few_bits(4, 4))
    before = {u.node.name: graph.tensor(u.scale) for node in graph.calls() if (u := UniformQuantizer.of(node))}
    zeros = {u.node.name: graph.tensor(u.zero_point) for node in graph.calls() if (u := UniformQuantizer.of(node))}
    aware = QuantizationAware("lsq+", batch_norms=False)
    train(graph, (X, Y), compress=[aware], epochs=4, batch_size=16, rate=2e-2, scale_rate=20.0)
    found = {u.node.name: u for node in graph.calls() if (u := UniformQuantizer.of(node))}
    assert {name for name in before if torch.equal(before[name], graph.tensor(found[name].scale))} == set()
    offsets = [name for name in zeros if not torch.equal(zeros[name], graph.tensor(found[name].zero_point))]
    assert offsets, "the grid of the input reaches below zero, so that its offset is learned"
    for node in graph.calls():
        if (layer := Layer.of(node)) and layer.bias is not None:
            scales = [
                graph.tensor(u.scale) for u in map(UniformQuantizer.of, (layer.input, layer.weight, layer.bias)) if u
            ]
            torch.testing.assert_close(scales[0] * scales[1], scales[2])


def test_a_grid_that_clips_for_relu6_never_ends_later() -> None:
    graph = simulated(few_bits(8, 4))
    aware = QuantizationAware(batch_norms=False)
    aware.attach(graph)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "power" in name:
                parameter.fill_(3.0)
    aware.step(0.5)
    aware.finish(graph)
    clip = next(node for node in graph.calls() if "hardtanh" in str(node.target) or "clamp" in str(node.target))
    grid = next(u for user in clip.users if (u := UniformQuantizer.of(user)))
    assert float(graph.tensor(grid.scale)) * grid.high <= 6.0 + 1e-5


def test_powers_of_two_stay_powers_of_two() -> None:
    graph = simulated(find("ambarella"))
    before = [graph.tensor(u.scale).clone() for node in graph.calls() if (u := UniformQuantizer.of(node))]
    train(
        graph,
        (X, Y),
        compress=[QuantizationAware()],
        epochs=3,
        batch_size=8,
        rate=0.05,
        scale_rate=5.0,
    )
    scales = [graph.tensor(u.scale) for node in graph.calls() if (u := UniformQuantizer.of(node))]
    assert all(bool((torch.frexp(scale).mantissa == 0.5).all()) for scale in scales)
    assert any(not torch.equal(a, b) for a, b in zip(before, scales, strict=True))


@pytest.mark.parametrize("bits", [10, 12])
def test_sums_of_products_fit_the_accumulator_that_was_promised(bits: int) -> None:
    graph = simulated(few_bits(4, 4))
    aware = QuantizationAware("a2q", accumulator_bits=bits)
    train(graph, (X, Y), compress=[aware], epochs=2, batch_size=16, rate=1e-2)
    for node in graph.calls():
        if (layer := Layer.of(node)) is None:
            continue
        weight, source = UniformQuantizer.of(layer.weight), UniformQuantizer.of(layer.input)
        assert weight is not None
        assert source is not None
        codes = (graph.tensor(weight.node) / graph.tensor(weight.scale).reshape(-1, *[1] * (layer.dims + 1))).round()
        zero = int(graph.tensor(source.zero_point))
        largest = max(abs(c - z) for c in (source.low, source.high) for z in (0, zero))
        assert float(codes.abs().flatten(1).sum(1).max()) * largest < 2 ** (bits - 1)


def test_norms_normalize_by_the_batch_until_they_are_frozen() -> None:
    graph = simulated(few_bits())
    aware = QuantizationAware(data=Calibration(X, graph), freeze_norms=0.5)
    aware.attach(graph)
    norms = graph.calls(torch.ops.aten.batch_norm.default)
    assert len(norms) == 2
    mean = graph.parameter(norms[0].args[3])  # type: ignore[arg-type]
    for progress, moves in ((0.0, True), (0.6, False)):
        aware.step(progress)
        graph.train()
        before = mean.clone()
        graph(X + 1)
        assert torch.equal(mean, before) != moves
    aware.finish(graph)
    assert graph.calls(torch.ops.aten.batch_norm.default) == []


def test_the_float_reference_is_what_was_trained_before_it_was_rounded() -> None:
    graph = simulated(few_bits())
    train(graph, (X, Y), compress=[QuantizationAware()], epochs=1, batch_size=16, rate=1e-2)
    kept = [graph.fact(node, FLOAT_REFERENCE) for node in graph.nodes if node.op == "get_attr"]
    latent = [value for value in kept if value is not None]
    assert len(latent) == 2
    assert "dB" in str(graphopt.analyze(graph, X))


@pytest.mark.thorough
@pytest.mark.parametrize("format", [LogFormat(8), BlockFloat(8, block=16), Codebook(4), BFLOAT16], ids=str)
def test_other_formats_train_by_the_same_call(format: Any) -> None:
    target = few_bits(8, 8)
    graph = simulated(target)
    graph = Graph.capture(network(), X[:2])
    graphopt.passes.FoldBatchNorm()(graph)
    graph.refresh()
    Quantize(target, Calibration(X, graph), weights=format)(graph)
    graph.refresh()
    before = graph(X)
    report = train(graph, (X, Y), compress=[QuantizationAware()], epochs=2, batch_size=16, rate=1e-2, evaluate=accuracy)
    assert quantizers(graph)
    assert not torch.equal(before, graph(X)) or report.kept == 0


@pytest.mark.parametrize(
    "method",
    ["lsq", pytest.param("stochastic", marks=pytest.mark.thorough), pytest.param("dsq", marks=pytest.mark.thorough)],
)
def test_an_interrupted_training_goes_on_bit_for_bit_and_leaves_a_plain_graph(method: str, tmp_path: Path) -> None:
    def run(stop: int | None, folder: Path) -> Graph:
        graph = simulated(few_bits())
        aware = QuantizationAware(method)
        try:
            train(
                graph, (X, Y), compress=[aware, Response(network()), Stops(stop)], epochs=2, batch_size=16, checkpoint=folder,
                evaluate=accuracy,
            )  # fmt: skip
        except KeyboardInterrupt:
            assert not graph.calls(torch.ops.aten.batch_norm.default)
        return graph

    whole = run(None, tmp_path / "a")
    run(4, tmp_path / "b")
    resumed = run(None, tmp_path / "b")
    for (name, one), (other, two) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(one, two), name


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="did you mean 'lsq'"):
        QuantizationAware("lqs")
    graph = Graph.capture(network(), X[:2])
    with pytest.raises(InputError, match="needs quantizers"):
        train(graph, (X, Y), compress=[QuantizationAware()])
    graph = simulated(few_bits())
    before = graph(X)
    with pytest.raises(InputError, match="hold no sum"):
        train(graph, (X, Y), compress=[QuantizationAware("a2q", accumulator_bits=4)])
    assert torch.equal(graph(X), before)
    with pytest.raises(InputError, match=r"give data=\[...\], or batch_norms=False"):
        QuantizationAware().attach(graph)
    assert torch.equal(graph(X), before)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("passes", "formats"),
    [
        ([FoldBatchNorm(), Sparsify(0.5)], {}),
        ([FoldBatchNorm(), Factorize(target_macs=0.8)], {}),
        ([FoldBatchNorm()], {"7": LayerFormat(Format(2, per_channel=True))}),
    ],
    ids=["masks", "ranks", "mixed bits"],
)
def test_masks_stay_zero_ranks_low_and_bits_mixed(passes: list[Pass], formats: dict[str, LayerFormat | None]) -> None:
    target, graph = few_bits(4, 8), capture_once(network(), X[:2])
    for each in [*passes, Quantize(target, Calibration(X, graph), formats=formats)]:
        each(graph)
        graph.refresh()
    before = {name: t.clone() for name, t in kept(graph).items()}
    shapes, bits = sorted(list(t.shape) for t in graph.parameters()), ends(graph)
    train(graph, (X, Y), compress=[QuantizationAware()], epochs=2, batch_size=16, rate=1e-2)
    assert bits == ends(graph)
    assert shapes == sorted(list(t.shape) for t in graph.parameters())
    assert set(before) == set(kept(graph))
    for name, mask in kept(graph).items():
        assert torch.equal(before[name], mask)
    for found in masks(graph):
        assert not bool(graph.tensor(found.product)[graph.tensor(found.mask) == 0].any())
    again = graphopt.optimize(graph, target=target, passes=[], measure=False)
    assert torch.equal(torch.as_tensor(again.artifact(X)), torch.as_tensor(graphopt.simulate(graph, target)(X)))


def ends(graph: Graph) -> list[tuple[int, int]]:
    return [(u.low, u.high) for node in graph.calls() if (u := UniformQuantizer.of(node))]


def test_ranges_follow_batches_until_they_are_frozen() -> None:
    graph = simulated(few_bits(8, 8))
    grids = [u for node in graph.calls() if (u := UniformQuantizer.of(node)) and not graph.is_constant(u.value)]
    seen: list[list[float]] = []

    class Watch(Compression):
        def step(self, progress: float) -> None:
            seen.append([float(graph.tensor(u.scale)) for u in grids if u.high < 2**16])

    before = [float(graph.tensor(u.scale)) for u in grids if u.high < 2**16]
    aware = QuantizationAware("ste", observe=0.5, batch_norms=False)
    train(graph, (10 * X, Y), compress=[aware, Watch()], epochs=2, batch_size=8, rate=1e-6)
    assert seen[0] == before
    assert seen[3][0] > seen[2][0] > seen[1][0] > before[0]  # inputs are ten times as large
    assert seen[7] == seen[8] == seen[11]
    assert seen[-1][1] <= 6 / 255 + 1e-6, "the grid that clips for relu6 ends no later"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_are_from_0_to_1(share: float) -> None:
    for name in ("observe", "freeze_norms"):
        with pytest.raises(InputError, match=name):
            QuantizationAware(**{name: share})


def test_running_statistics_are_taken_anew_before_an_evaluation() -> None:
    graph = simulated(few_bits())
    aware = QuantizationAware("ste", data=[[X]], reestimate_norms=True)
    aware.attach(graph)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "weight" in name:
                parameter *= 1.3
    for settled in (False, True):
        if settled:
            aware.settle(graph)
        found = graph(X)
        by_batch = Executor(graph.clone(), training=True)(X)  # a training writes to running statistics
        same = float(torch.isclose(found, by_batch, atol=1e-4).double().mean())
        assert same > 0.95 if settled else same < 0.5  # a value may lie on the border of two codes

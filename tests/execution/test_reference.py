"""The float reference: what a graph was before rounding was made up for, in memory and from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_once import capture_once
from torch import Tensor, nn

import graphopt
from graphopt.execution.reference import PartialQuantization, float_reference
from graphopt.formats import FloatFormat, Format, LogFormat
from graphopt.ir.facts import FLOAT_REFERENCE
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization.absorb_bias import AbsorbHighBias
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding import LearnRounding
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passmanager.runner import run
from graphopt.targets import find

X = torch.randn(32, 3, 10, 10, generator=torch.Generator().manual_seed(1))
BATCHES = [[part] for part in X.split(8)]
COARSE = Format(3, per_channel=True)


def network(clip: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU6() if clip else nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
    )
    norm: Any = model[1]
    norm.running_var.uniform_(0.4, 1.6)
    norm.running_mean.uniform_(-1, 1)
    norm.bias.data.uniform_(0, 5)
    return model.eval()


def sqnr(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.detach(), got.detach()
    return float(10 * torch.log10(wanted.square().mean() / (wanted - got).square().mean()))


def quantized(model: nn.Module, *before: Any, after: Any = (), **options: Any) -> Graph:
    graph = capture_once(model, X[:2])
    options = {"weights": COARSE, **options}
    run([Simplify(), FoldBatchNorm(), *before, Quantize(find("x86"), BATCHES, **options), *after], graph, verify=False)
    return graph


def again(graph: Graph, path: Path, **options: Any) -> Graph:
    graph.save(path / "graph.pt2", **options)
    return Graph.load(path / "graph.pt2")


WAYS: dict[str, list[Any]] = {
    "CorrectBias": [CorrectBias(BATCHES)],
    "gptq": [LearnRounding(BATCHES)],
    "adaround": [LearnRounding(BATCHES, method="adaround", iterations=5, batch=8)],
    "RefineRanges": [RefineRanges(BATCHES, evaluations=10, weights=True)],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip", [False, True], ids=["relu", "ends per channel"])
def test_the_float_network_is_there_before_and_after_a_file(way: str, clip: bool, tmp_path: Path) -> None:
    model = network(clip)
    graph = quantized(model, *([EqualizeChannels()] if clip else []), after=WAYS[way])
    for known in (graph, again(graph, tmp_path), again(graph.clone(), tmp_path)):
        assert sqnr(model(X), float_reference(known)(X)) > 80
        assert sqnr(model(X), known(X)) < 40


@pytest.mark.thorough
@pytest.mark.parametrize("weights", [LogFormat(4), FloatFormat(2, 1)], ids=str)
def test_the_bias_of_a_layer_without_integers_is_remembered(weights: Any, tmp_path: Path) -> None:
    model = network()
    graph = quantized(model, after=[CorrectBias(BATCHES)], weights=weights)
    for known in (graph, again(graph, tmp_path)):
        assert sqnr(model(X), float_reference(known)(X)) > 80


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["CorrectBias", "gptq"])
@pytest.mark.parametrize("clip", [False, True], ids=["relu", "ends per channel"])
def test_any_set_of_quantizers_runs_with_the_constants_that_belong_to_it(way: str, clip: bool, tmp_path: Path) -> None:
    model = network(clip)
    graph = quantized(model, *([EqualizeChannels()] if clip else []), after=WAYS[way])
    for known in (graph, again(graph, tmp_path)):
        network_ = PartialQuantization(known)
        for how, wanted in ((frozenset(), float_reference(known)(X)), (network_.all, known(X))):
            (found,) = network_.executor(how).float_outputs([X])
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_analyze_of_a_loaded_graph_says_what_it_says_of_the_live_one(tmp_path: Path) -> None:
    graph = quantized(network(), after=WAYS["gptq"])
    live, loaded = (graphopt.analyze(g, X).to_dict() for g in (graph, again(graph, tmp_path)))
    assert live == loaded
    assert live["notes"] == []


def test_without_its_reference_a_file_is_smaller_and_analyze_says_so(tmp_path: Path) -> None:
    graph = quantized(network(), after=WAYS["gptq"])
    graph.save(tmp_path / "whole")
    bare = again(graph, tmp_path, reference=False)
    floats = sum(graph.tensor(n).nbytes for n in graph.nodes if graph.fact(n, FLOAT_REFERENCE) is not None)
    assert (tmp_path / "whole").stat().st_size - (tmp_path / "graph.pt2").stat().st_size > floats
    assert torch.equal(bare(X), graph(X))
    for known in (bare, bare.clone(), again(bare, tmp_path)):
        (note,) = graphopt.analyze(known, X).notes
        assert "saved without its float reference" in note
    LearnRounding(BATCHES)(bare)  # does not take the rounded weights for the float ones
    assert not any(bare.fact(n, FLOAT_REFERENCE) is not None for n in bare.nodes)


def test_a_plain_quantized_graph_needs_no_reference(tmp_path: Path) -> None:
    model = network()
    bare = again(quantized(model), tmp_path, reference=False)
    assert graphopt.analyze(bare, X).notes == []
    assert sqnr(model(X), float_reference(bare)(X)) > 80


PASSES: dict[str, Any] = {
    "CorrectBias by norms": CorrectBias(),
    "CorrectBias": CorrectBias(BATCHES),
    "gptq": LearnRounding(BATCHES),
    "RefineRanges": RefineRanges(BATCHES, evaluations=60),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_does_to_a_loaded_graph_what_it_does_to_a_fresh_one(name: str, tmp_path: Path) -> None:
    fresh = quantized(network())
    loaded = again(fresh, tmp_path)
    for graph in (fresh, loaded):
        assert PASSES[name](graph)
        graph.refresh()
    assert str(loaded) == str(fresh)
    assert torch.equal(loaded(X), fresh(X))
    once = again(fresh, tmp_path)
    assert PASSES[name](once) == []


@pytest.mark.thorough
def test_absorbing_high_biases_works_on_a_loaded_graph(tmp_path: Path) -> None:
    fresh = capture_once(network(), X[:2])
    run([Simplify(), FoldBatchNorm()], fresh)
    loaded = again(fresh, tmp_path)
    changes = [list(map(str, AbsorbHighBias()(graph))) for graph in (fresh, loaded)]
    assert changes[0] == changes[1] != []
    assert torch.equal(fresh(X), loaded(X))


@pytest.mark.thorough
def test_the_reference_shares_what_rounding_left_alone() -> None:
    graph = quantized(network(), weights=replace(COARSE, bits=8))
    reference = float_reference(graph)
    own = {t.data_ptr() for t in graph.module.state_dict().values()}
    assert all(t.data_ptr() in own for t in reference.module.state_dict().values())

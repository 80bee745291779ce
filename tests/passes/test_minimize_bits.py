"""Codes of fewer bits than the nearest, at no more error."""

from __future__ import annotations

import pytest
import torch
from rewriting import apply, capture
from test_share_weights import Network, images

import graphopt
from graphopt.backends.onnxruntime import lower
from graphopt.fitting.priced import entropy
from graphopt.ir import cost
from graphopt.ir.graph import Graph
from graphopt.ir.masks import zero_share
from graphopt.passes.quantization import Quantize
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.passes.rounding import CorrectBias, LearnRounding, MinimizeBits
from graphopt.passes.rounding.weights import rounded_layers
from graphopt.passes.sparsity import Sparsify
from graphopt.targets import find
from graphopt.utils.errors import InputError

X86, DATA = find("x86"), [[images(64)]]


def quantized() -> Graph:
    graph = capture(Network(), images(2))
    apply(Quantize(X86, DATA, estimator="minmax"), graph)
    return graph


def total(graph: Graph) -> float:
    """Bits of all codes."""
    found = rounded_layers(graph)
    return sum(entropy(r.lattice(graph).codes(r.grouped(r.weight(graph)).double())) for r in found)


def test_fewer_bits_at_no_more_error() -> None:
    model, unseen = Network(), images(64, seed=9)
    wanted = model(unseen).detach()
    nearest, chosen = quantized(), quantized()
    apply(CorrectBias(DATA), nearest)
    assert len(apply(MinimizeBits(DATA), chosen)) == 3
    assert total(chosen) < 0.93 * total(nearest)
    assert cost.sqnr(wanted, chosen(unseen).detach()) > cost.sqnr(wanted, nearest(unseen).detach()) - 1
    assert apply(MinimizeBits(DATA), chosen) == []


def test_more_error_saves_more_bits() -> None:
    found = []
    for error in (0.5, 1.0, 8.0):
        graph = quantized()
        apply(MinimizeBits(DATA, error), graph)
        found.append(total(graph))
    assert found == sorted(found, reverse=True)
    assert found[2] < 0.95 * found[0]


def test_the_artifact_answers_what_was_simulated_in_a_smaller_file() -> None:
    nearest, chosen = quantized(), quantized()
    apply(MinimizeBits(DATA, 4.0), chosen)
    artifacts = [lower(graph, X86) for graph in (nearest, chosen)]
    plain = [artifact.size_bytes for artifact in artifacts]
    for artifact in artifacts:
        artifact.store()
    assert plain[0] == plain[1]
    assert artifacts[1].size_bytes < artifacts[0].size_bytes
    x = images(8)
    assert cost.sqnr(chosen(x).detach(), artifacts[1](x)) > 30


def test_weights_in_blocks_of_four_bits_are_chosen_likewise() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)).eval()
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(2)) @ torch.randn(8, 64)
    graphs = [capture(model, x[:2]) for _ in range(2)]
    for graph in graphs:
        apply(QuantizeWeights(4, 32), graph)
    apply(MinimizeBits([[x[:96]]]), graphs[1])
    assert total(graphs[1]) < 0.95 * total(graphs[0])
    wanted = model(x[96:]).detach()
    assert cost.sqnr(wanted, graphs[1](x[96:]).detach()) > cost.sqnr(wanted, graphs[0](x[96:]).detach()) - 1


def test_optimize_chooses_codes_for_an_entropy_coder_where_the_file_is_coded() -> None:
    options = {"calibration": images(64), "target": "x86", "measure": False}
    coded = graphopt.optimize(Network().eval(), images(2), storage="entropy", **options)  # type: ignore[arg-type]
    assert "MinimizeBits" in [step.name for step in coded.report.steps]
    plain = graphopt.optimize(Network().eval(), images(2), **options)  # type: ignore[arg-type]
    plain.artifact.store()
    assert coded.artifact.size_bytes < plain.artifact.size_bytes


def test_pruned_weights_stay_zero() -> None:
    graph = capture(Network(), images(2))
    apply(Sparsify(0.7), graph)
    apply(Quantize(X86, DATA, estimator="minmax"), graph)
    apply(MinimizeBits(DATA, 2.0), graph)
    assert zero_share(graph) >= 0.7 - 0.002


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="share of the nearest codes' error, over 0, got 0"):
        MinimizeBits(DATA, 0)
    with pytest.raises(InputError, match="no quantized weights"):
        apply(MinimizeBits(DATA), capture(Network(), images(2)))
    corrected = quantized()
    apply(CorrectBias(DATA), corrected)
    with pytest.raises(InputError, match="was corrected"):
        apply(MinimizeBits(DATA), corrected)


def test_it_does_the_work_of_learned_rounding() -> None:
    graph = quantized()
    apply(MinimizeBits(DATA), graph)
    assert apply(LearnRounding(DATA), graph) == []

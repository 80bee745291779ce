"""Masks in the graph, through other passes and files, and as zeros in the artifact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as reference
from blocks import BLOCKS, conv, images, model_of
from capture_once import capture_once
from rewriting import apply, assert_close, capture, randomised
from sparsifying import kept, perceptron
from torch import Tensor, nn

import graphopt
from graphopt.analysis.channels.groups import groups
from graphopt.analysis.channels.removal import remove
from graphopt.analysis.channels.trace import Trace
from graphopt.backends.onnxruntime import lower
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.quantization import Quantize
from graphopt.passes.sparsity import (
    BakeMasks,
    Sparsify,
    bake,
    masks,
    release,
    zero_share,
)
from graphopt.passmanager.runner import run
from graphopt.targets import find


def small(name: str = "residual") -> Graph:
    torch.manual_seed(0)
    return capture_once(model_of(name).eval(), images(2))


# ---- The graph ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_masks_survive_files_copies_and_modes(tmp_path: Path) -> None:
    graph, x = small(), images(4)
    Sparsify(0.6)(graph)
    graph.save(tmp_path / "graph.pt2")
    for other in (Graph.load(tmp_path / "graph.pt2"), graph.clone(), copy.deepcopy(graph), graph.train().eval()):
        assert torch.equal(other(x), graph(x))
        assert {k: v.tolist() for k, v in kept(other).items()} == {k: v.tolist() for k, v in kept(graph).items()}
        assert {n for n, _ in other.named_parameters()} == {n for n, _ in graph.named_parameters()}
    copied = graph.clone()
    Sparsify(0.9)(copied)
    assert zero_share(graph) == pytest.approx(0.6, abs=0.01)


def test_simplify_leaves_masks_and_bake_takes_them_away() -> None:
    graph, x = small(), images(4)
    text, names = str(graph), set(graph.state_dict())
    Sparsify(0.6)(graph)
    apply(Simplify(), graph)
    assert len(masks(graph)) == 4
    before = graph(x)
    assert apply(BakeMasks(), graph)[0].what == "mask baked in, 130 of 216 weights are zero"
    assert torch.equal(graph(x), before)
    assert set(graph.state_dict()) == names
    assert zero_share(graph) == pytest.approx(0.6, abs=0.01)
    assert not any(bool(torch.signbit(w[w == 0]).any()) for n, w in graph.state_dict().items() if n == "first.0.weight")
    assert bake(graph) == []
    apply(Simplify(), other := small())
    assert str(graph) == str(other)
    assert str(other) != text


@pytest.mark.many
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("transform", [FoldBatchNorm(), EqualizeChannels(), FoldConstantChannels()], ids=repr)
def test_passes_that_need_constants_bake_first_and_keep_zeros(name: str, transform: Any) -> None:
    masked = small(name)
    Sparsify(0.6)(masked)
    baked = masked.clone()
    bake(baked)
    x = images(4)
    expected = masked(x).detach()
    run([transform], masked)
    run([transform], baked)
    assert str(masked) == str(baked)
    assert_close(masked(x), expected)
    assert zero_share(masked) >= zero_share(baked) - 1e-9 > 0.55


def test_what_torch_pruned_is_a_mask_too() -> None:
    model, x = perceptron(), torch.randn(4, 12)
    reference.l1_unstructured(model[0], "weight", 0.5)
    expected = model(x)
    graph = capture(model, x)
    assert list(kept(graph)) == ["0.weight_orig"]
    bake(graph)
    assert not masks(graph)
    assert_close(graph(x), expected)


def test_a_product_of_constants_that_is_no_mask_is_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("mask", torch.ones(3, 4).tril())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask)

    graph = capture(Scaled(), torch.randn(2, 4))
    assert masks(graph) == []
    assert release(graph) == []
    with pytest.raises(ValueError, match="no layer can be sparsified"):
        Sparsify(0.5)(graph)


# ---- Lowering -------------------------------------------------------------------------------------------------------


def stored(artifact: Any) -> dict[str, np.ndarray[Any, Any]]:
    model = onnx.load(artifact.folder / "model.onnx")
    return {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.thorough
def test_zeros_are_zero_codes_in_the_artifact() -> None:
    torch.manual_seed(0)
    model = randomised(nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)))
    x = torch.randn(8, 4, 8, 8)
    graph = capture(model, x)
    Sparsify(0.7, scope="global")(graph)
    result = graphopt.optimize(graph, target="x86", calibration=x, measure=False)
    codes = [a for a in stored(result.artifact).values() if a.dtype in (np.int8, np.uint8) and a.ndim > 1]
    for mask in kept(graph).values():
        zeros = mask.numpy() == 0
        found = [a for a in codes if a.shape == zeros.shape or a.T.shape == zeros.shape]
        assert any(not (a if a.shape == zeros.shape else a.T)[zeros].any() for a in found), (zeros.shape, codes)
    assert len(masks(graph)) == 3  # the caller's graph keeps its masks
    assert zero_share(result.graph) == pytest.approx(0.7, abs=0.01)
    (note,) = [note for note in result.report.notes if "zero" in note]
    assert note.startswith("70.0% of the weights are zero: that saves storage")
    assert "saves no time" in note
    assert result.artifact.compressed_bytes < 0.8 * graphopt.optimize(
        model, x, target="x86", calibration=x, measure=False
    ).artifact.compressed_bytes  # fmt: skip


@pytest.mark.thorough
def test_a_masked_graph_is_lowered_without_masks() -> None:
    graph, x = small(), images(4)
    Sparsify(0.6)(graph)
    artifact = lower(graph, find("x86"))
    assert not any("mask" in name for name in stored(artifact))
    assert_close(artifact(x), graph(x))
    assert len(masks(graph)) == 4


def test_quantize_bakes_masks_first() -> None:
    graph = small()
    Sparsify(0.6)(graph)
    apply(Simplify(), graph)
    baked = graph.clone()
    bake(baked)
    quantize = Quantize(find("x86"), [[images(4)]], estimator="minmax")
    assert apply(quantize, graph)[0].what.startswith("mask baked in")
    apply(quantize, baked)
    assert str(graph) == str(baked)
    x = images(4, seed=2)
    assert torch.equal(graph(x), baked(x))


@pytest.mark.thorough
def test_a_dense_model_has_no_note_about_zeros() -> None:
    graph = small()
    result = graphopt.optimize(graph, target="x86", calibration=images(8), measure=False)
    assert not [note for note in result.report.notes if "zero" in note]


# ---- With structured removal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_of_masked_layers_are_found_and_removed(name: str) -> None:
    """As many groups as without masks, and removal gives what it gives when masks are baked in before."""
    masked = small(name)
    plain = groups(masked.clone())
    Sparsify(0.5)(masked)
    baked = masked.clone()
    bake(baked)
    for graph in (masked, baked):
        trace = Trace(graph)
        found = groups(graph, trace)
        assert [(g.name, len(g), len(g.free)) for g in found] == [(g.name, len(g), len(g.free)) for g in plain]
        remove(graph, trace, [(g, g.free[:2].tolist()) for g in found if len(g.free) > 2])
    x = images(4)
    assert_close(masked(x), baked(x))
    assert len(masks(masked)) > 1
    for m in masks(masked):
        assert masked.tensor(m.weight).shape == masked.tensor(m.mask).shape
    bake(masked)
    assert str(masked) == str(baked)

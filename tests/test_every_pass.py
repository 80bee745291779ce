"""Every pass over every small network: what any pass has to keep to."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from blocks import BLOCKS, images, model_of
from rewriting import apply, assert_close, randomised
from small_models import MODELS
from torch import Tensor, nn

from graphopt.formats import Binary, BlockFloat, LogFormat, Ternary
from graphopt.ir.graph import Graph
from graphopt.passes.attention import ReplaceAttention
from graphopt.passes.binary import Binarize, BlockShortcuts
from graphopt.passes.cleanup.decompose_activations import DecomposeActivations
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constant_channels import FoldConstantChannels
from graphopt.passes.cleanup.fold_input_normalization import FoldInputNormalization
from graphopt.passes.cleanup.reestimate_batchnorm import ReestimateBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.equalization.absorb_bias import AbsorbHighBias
from graphopt.passes.equalization.equalize_channels import EqualizeChannels
from graphopt.passes.factorization import BlockDiagonal
from graphopt.passes.hashing import BinaryCodes
from graphopt.passes.quantization import MixedPrecision, Quantize
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.passes.quantization.refine_ranges import RefineRanges
from graphopt.passes.rounding.correct_bias import CorrectBias
from graphopt.passes.sharing import ProductQuantize, ShareWeights, TieLayers
from graphopt.passes.sparsity import BakeMasks, Sparsify
from graphopt.targets import find

PASSES: list[Any] = [
    Simplify(), FoldBatchNorm(), FoldBatchNorm(depthwise=True), FoldConstantChannels(), EqualizeChannels(), AbsorbHighBias(),
    FoldInputNormalization(), DecomposeActivations(), Quantize(find("x86"), [[images(2)]], estimator="minmax"),
    ReestimateBatchNorm([[images(8)]]),
    Quantize(find("x86"), [[images(2)]], weights=LogFormat(8), activations=BlockFloat(8), estimator="minmax"),
    QuantizeWeights(), CorrectBias(), RefineRanges([[images(4)]]),
    MixedPrecision(find("x86"), [[images(2)]], average_bits=5.0, choices=(4, 8), estimator="minmax"),
    Sparsify(0.5), Sparsify(0.5, criterion="obd", data=[[images(2)]], loss=lambda y, _: y.sum(), scope="global"), BakeMasks(),
    ShareWeights(3), ShareWeights(4, values="uniform", data=[[images(8)]]), BinaryCodes(8, [[images(8)]], method="random"),
    TieLayers(), TieLayers(data=[[images(8)]]),
    Binarize(), Binarize(Ternary(), activations=Binary(), calibration=[[images(2)]], first=True, last=True), BlockShortcuts(),
    ReplaceAttention(), ReplaceAttention("star", data=[[images(4)]]), ProductQuantize(4), ProductQuantize(4, data=[[images(8)]]),
    BlockDiagonal(2), BlockDiagonal(2, data=[[images(8)]]),
]  # fmt: skip

GIVE_NO_FEATURES = ("upsampling", "shuffling")  # but images; refused


@cache
def captured(name: str) -> tuple[nn.Module, Graph]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = (model_of(name) if name in BLOCKS else randomised(MODELS[name]())).eval()
    return model, Graph.capture(model, images(2))


def state(graph: Graph) -> tuple[str, dict[str, Tensor]]:
    return str(graph), {name: value.clone() for name, value in graph.state_dict().items()}


def same(one: tuple[str, dict[str, Tensor]], other: tuple[str, dict[str, Tensor]]) -> bool:
    constants = one[1].keys() == other[1].keys() and all(torch.equal(v, other[1][k]) for k, v in one[1].items())
    return one[0] == other[0] and constants


def pairs() -> list[Any]:
    """Every pass with every network; each of both in turns as captured and with batch norms folded."""
    return [
        pytest.param(name, transform, (i + j) % 2 == 1, id=f"{name}-{type(transform).__name__}")
        for i, name in enumerate(MODELS)
        for j, transform in enumerate(PASSES)
        if not (isinstance(transform, BinaryCodes) and name in GIVE_NO_FEATURES)
    ]


@pytest.mark.parametrize(("name", "transform", "folded"), pairs())
def test_every_pass_keeps_to_the_contract(name: str, transform: Any, folded: bool) -> None:
    model, original = captured(name)
    graph = original.clone()
    if folded:
        apply(FoldBatchNorm(), graph)
    before, weights, x = state(graph), copy.deepcopy(model.state_dict()), images(4, seed=3)
    changes = apply(transform, graph)
    after = state(graph)
    assert bool(changes) != same(before, after)  # it reports a change exactly when there is one
    assert all(change.site and change.what for change in changes)
    with torch.no_grad():
        if transform.exact:
            assert_close(graph(x), model(x))
        else:
            assert all(bool(torch.isfinite(t).all()) for t in [graph(x)])
    assert apply(transform, graph) == []  # a second run finds nothing to do
    assert same(state(graph), after)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert same(state(original), state(captured(name)[1]))

"""What tests of the TVM backend share. It is imported when it is called: tests that skip without TVM are collected without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rewriting import capture
from torch import Tensor, nn

import graphopt
from graphopt.formats import Format
from graphopt.ir.graph import Graph
from graphopt.passes.cleanup.fold_batchnorm import FoldBatchNorm
from graphopt.passes.cleanup.simplify import Simplify
from graphopt.passes.quantization import Quantize
from graphopt.passmanager.runner import run
from graphopt.targets import Target, find

UNSIGNED = find("tvm-x86")
_ACTIVATIONS = UNSIGNED.formats.activations
assert isinstance(_ACTIVATIONS, Format)
SIGNED = UNSIGNED.replace(activations=replace(_ACTIVATIONS, signed=True))
FORMATS = {"u8": UNSIGNED, "s8": SIGNED}


def lower_through_tvm(graph: Graph, target: Target, **options: Any) -> Any:
    """See `graphopt.backends.tvm.lower`."""
    from graphopt.backends.tvm import lower

    return lower(graph, target, **options)


def quantized(model: nn.Module, target: Target, *inputs: Tensor, **options: Any) -> Graph:
    """Captured and quantized as it is, without what the recipe does before and behind."""
    graph = capture(model, *inputs)
    run([Quantize(target, [[*inputs]], estimator="minmax", **options)], graph, verify=False)
    return graph


def cleaned(model: nn.Module, *inputs: Tensor, **options: Any) -> Graph:
    """Captured in float, with batch norms folded."""
    graph = Graph.capture(model.eval(), inputs, **options)
    run([Simplify(), FoldBatchNorm(depthwise=True)], graph)
    return graph


def assert_identical(graph: Graph, target: Target, x: Tensor) -> Any:
    """The artifact answers what the simulation answers, in every bit; returns the artifact."""
    artifact = lower_through_tvm(graph, target)
    answers, expected = artifact(x), graphopt.simulate(graph, target)(x)
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, (answers, expected)), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    return artifact

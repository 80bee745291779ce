"""What tests of the integer simulation share: quantized graphs, and the comparison with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import onnx
import torch
from blocks import target_of
from rewriting import apply, capture
from torch import Tensor, nn

import graphopt
from graphopt.backends.onnxruntime import Mismatch, OnnxRuntimeArtifact, Simulation
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize
from graphopt.targets import machine_here

HERE = machine_here()


def simulation_of(graph: Graph, target: str) -> Simulation:
    return graphopt.simulate(graph, target_of(target), machine=HERE)


def quantized(model: nn.Module, target: str, *inputs: Tensor, **options: Any) -> Graph:
    """Captured and quantized as it is, without what the recipe does before and behind."""
    graph = capture(model, *inputs)
    apply(Quantize(target_of(target), [[*inputs]], estimator="minmax", **options), graph)
    return graph


def quantizers(artifact: OnnxRuntimeArtifact) -> int:
    nodes = onnx.load(str(artifact.folder / "model.onnx")).graph.node
    return sum(node.op_type == "QuantizeLinear" for node in nodes)


def assert_equal(simulation: Simulation, artifact: OnnxRuntimeArtifact, *inputs: Tensor) -> list[Mismatch]:
    """Every code of every kernel by itself, and the answer of all together."""
    found = simulation.mismatches(artifact, *inputs)
    assert [str(line) for line in found if line.differing] == []
    assert len(found) >= quantizers(artifact)
    for ours, theirs in zip(
        torch.utils._pytree.tree_leaves(simulation(*inputs)),
        torch.utils._pytree.tree_leaves(artifact(*inputs)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    return found

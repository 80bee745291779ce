"""What tests of ONNX files share: a quantized graph."""

from __future__ import annotations

from typing import Any

import onnx
import torch
from blocks import target_of
from rewriting import apply, capture
from torch import nn

from graphopt.backends.onnxruntime import OnnxRuntimeArtifact
from graphopt.ir.graph import Graph
from graphopt.passes.quantization import Quantize

X86 = target_of("x86")


def file(artifact: OnnxRuntimeArtifact) -> Any:
    return onnx.load(str(artifact.folder / "model.onnx"))


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def quantized(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> Graph:
    graph = capture(model, *inputs)
    apply(Quantize(X86, [[*inputs]], estimator="minmax", **options), graph)
    return graph

"""What really runs: the runtime's own optimized graph, read back.

ONNX Runtime fuses quantize/dequantize pairs around an operator into one integer kernel, or silently computes in float. After
loading a model once with its optimized graph written to disk, the operators in that file are what executes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact, open_session
from graphopt.report import FloatOperator

# Computing operators by the position of their weight (or second operand).
INTEGER_WORK = {"QLinearConv": 3, "QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1, "ConvInteger": 1, "MatMulInteger": 1}
FLOAT_WORK = {"Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1}
# Move, shape or convert; or work on indices: neither integer nor float arithmetic on activations.
NEUTRAL = {
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Concat",
    "Slice", "Split", "Gather", "Identity", "Cast", "Constant", "ConstantOfShape", "Expand", "Size", "Range", "Pad", "MaxPool",
    "Resize", "DepthToSpace", "SpaceToDepth", "Clip", "Where", "Equal", "ReorderInput", "ReorderOutput",
}  # fmt: skip
REASONS = {
    "ConvTranspose": "ONNX Runtime has no integer kernel for transposed convolutions",
    "LayerNormalization": "normalization over channels has no integer kernel",
    "SkipLayerNormalization": "normalization over channels has no integer kernel",
    "InstanceNormalization": "normalization by the input's own statistics has no integer kernel",
    "Gelu": "GELU has no integer kernel",
    "BiasGelu": "GELU has no integer kernel",
    "FastGelu": "GELU has no integer kernel",
    "QuickGelu": "GELU has no integer kernel",
    "Erf": "GELU has no integer kernel",
    "HardSwish": "hard-swish has no integer kernel; DecomposeActivations writes it as one that has",
    "ReduceMean": "this mean is not over the whole image, and others have no integer kernel",
    "Tanh": "tanh has no integer kernel",
    "Exp": "exp has no integer kernel",
    "MatMul": "a product of two activations is left in float",
    "FusedMatMul": "a product of two activations is left in float",
    "Softmax": "softmax between float values stays float",
}


@dataclass
class Audit:
    """Attributes:
    integer: computing operators in integer, by the site of their layer.
    floating: operators that compute in float.
    integer_macs, total_macs: multiply-accumulates of layers; `share` is their quotient.
    operators: how often each operator type occurs.
    """

    integer: list[str] = field(default_factory=list)
    floating: list[FloatOperator] = field(default_factory=list)
    integer_macs: int = 0
    total_macs: int = 0
    operators: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of multiply-accumulates of convolutions and linear layers computed in integer, 0 to 1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0


def audit(artifact: OnnxRuntimeArtifact, work: dict[str, int], left: dict[str, str] | None = None) -> Audit:
    """Read back what the runtime made of an artifact on this machine.

    Args:
        work: multiply-accumulates of every convolution and linear layer, by site.
        left: sites that were left in float on purpose, and why.
    """
    model = optimized(artifact.folder / MODEL)
    found, left = Audit(total_macs=sum(work.values())), left or {}
    sites = _Sites(model, work)
    for node in model.graph.node:
        kind = node.op_type
        found.operators[kind] = found.operators.get(kind, 0) + 1
        if kind in INTEGER_WORK:
            site = sites.of(node)
            found.integer.append(site)
            found.integer_macs += work.get(site, 0)
        elif not _is_neutral(node, sites):
            site = sites.of(node)
            reason = left.get(site) or REASONS.get(kind) or "its neighbours are float" 
            found.floating.append(FloatOperator(site, kind, reason, work.get(site, 0) if kind in FLOAT_WORK else 0))
    return found


def optimized(path: Path) -> Any:
    """The model as ONNX Runtime rewrote it for this machine."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        target = Path(folder) / "optimized.onnx"
        open_session(path, optimized=target)
        return onnx.load(str(target), load_external_data=False)


class _Sites:
    """From a node of the optimized graph to the layer it came from.

    The runtime keeps the names of nodes it fuses, at least as a prefix; the exporter names a node after the call it came from,
    and `lower` puts the layer's path there.
    """

    def __init__(self, model: Any, work: dict[str, int]) -> None:
        self.work = sorted(work, key=len, reverse=True)
        self.floats = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
        self.constants = {i.name for i in model.graph.initializer}

    def of(self, node: Any) -> str:
        return str(node.name).partition("|")[0]


def _is_neutral(node: Any, sites: _Sites) -> bool:
    kind = node.op_type
    return kind in NEUTRAL or kind.startswith("QLinear")


def walk(model: Any) -> Iterator[Any]:
    yield from model.graph.node

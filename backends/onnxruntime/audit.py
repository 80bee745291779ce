"""What really runs: the runtime's own optimized graph, read back.

ONNX Runtime fuses quantize/dequantize pairs around an operator into one integer kernel, or silently computes in float. After
loading a model once with its optimized graph written to disk, the operators in that file are what executes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from graphopt.audit import Audit
from graphopt.backends.onnxruntime.artifact import MODEL, OnnxRuntimeArtifact, open_session
from graphopt.backends.onnxruntime.nbits import OPERATOR as MULTIPLIES_BLOCKS
from graphopt.backends.onnxruntime.qnn.refusals import left_to_cpu
from graphopt.compliance.model import LAYERS, Model
from graphopt.compliance.rules import FAMILIES
from graphopt.report import FloatOperator

# Computing operators by the position of their weight (or second operand).
INTEGER_WORK = {
    "QLinearConv": 3,
    "QGemm": 3,
    "QLinearMatMul": 3,
    "MatMulIntegerToFloat": 1,
    "ConvInteger": 1,
    "MatMulInteger": 1,
}
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
    "ReduceMean": "only means of integers over whole images have an integer kernel",
    "Tanh": "tanh has no integer kernel",
    "Exp": "exp has no integer kernel",
    "MatMul": "a product of two activations is left in float",
    "FusedMatMul": "a product of two activations is left in float",
    "Softmax": "softmax between float values stays float",
}


def audit(artifact: OnnxRuntimeArtifact) -> Audit:
    """Read back what the runtime makes of an artifact on this machine; for other hardware, what the model's quantizers say."""
    if artifact.manifest.target.get("vendor_compiler"):
        return declared(artifact, left_to_cpu(artifact))
    layers = artifact.manifest.options["layers"]  # weight name -> site and MACs, written by `lower`
    model = optimized(artifact.folder / MODEL)
    producers = {output: node for node in model.graph.node for output in node.output}
    found = Audit(total_macs=sum(layer["macs"] for layer in layers.values()))
    for node in model.graph.node:
        kind = node.op_type
        found.operators[kind] = found.operators.get(kind, 0) + 1
        position = {**INTEGER_WORK, **FLOAT_WORK, MULTIPLIES_BLOCKS: 1}.get(kind)
        layer = layers.get(_weight(node, position, producers)) if position is not None else None
        site = layer["site"] if layer else str(node.name).removeprefix("node_").partition("_token_")[0]
        if kind in INTEGER_WORK:
            found.integer.append(site)
            found.integer_macs += layer["macs"] if layer else 0
        elif kind == MULTIPLIES_BLOCKS:
            bits = next(int(a.i) for a in node.attribute if a.name == "bits")
            found.weight_only.append(site)
            found.weight_only_macs[bits] = found.weight_only_macs.get(bits, 0) + (layer["macs"] if layer else 0)
        elif kind not in NEUTRAL and not kind.startswith("QLinear"):
            reason = (layer or {}).get("left") or REASONS.get(kind, "the operators around it are float")
            found.floating.append(FloatOperator(site, kind, reason, layer["macs"] if layer else 0))
    return found


def declared(artifact: OnnxRuntimeArtifact, refused: Mapping[str, str] | None = None) -> Audit:
    """Integer is what lies between DequantizeLinear and QuantizeLinear; `refused`: reasons why nodes are not, by name."""
    layers, model = artifact.manifest.options["layers"], Model.read(artifact)
    found = Audit(total_macs=sum(layer["macs"] for layer in layers.values()))
    for node in model.nodes:
        kind = node.op_type
        found.operators[kind] = found.operators.get(kind, 0) + 1
        layer = layers.get(_weight(node, 1, model.makers)) if kind in LAYERS else None
        site = layer["site"] if layer else model.name(node).removeprefix("node_")
        if (reason := (refused or {}).get(model.name(node))) is not None:
            found.floating.append(FloatOperator(site, kind, reason, layer["macs"] if layer else 0))
        elif kind in LAYERS and model.between_codes(node):
            found.integer.append(site)
            found.integer_macs += layer["macs"] if layer else 0
        elif kind in LAYERS or (kind in FAMILIES and not model.between_codes(node)):
            reason = (layer or {}).get("left") or "no integer operator of the target"
            found.floating.append(FloatOperator(site, kind, reason, layer["macs"] if layer else 0))
    return found


def _weight(node: Any, position: int, producers: dict[str, Any]) -> str:
    """The name of the initializer a layer reads, through conversions on the way."""
    name = node.input[position] if position < len(node.input) else ""
    while name in producers and producers[name].op_type in ("DequantizeLinear", "Transpose", "Reshape", "Identity"):
        name = producers[name].input[0]
    return str(name)


def optimized(path: Path) -> Any:
    """The model as ONNX Runtime rewrites it for this machine, without its weights."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        target = Path(folder) / "optimized.onnx"
        open_session(path, optimized=target)
        return onnx.load(str(target), load_external_data=False)

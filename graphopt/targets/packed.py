"""Hardware whose number formats no ONNX operator has: packed codes for its tools, run by simulation here."""

from __future__ import annotations

from graphopt.formats import LogFormat
from graphopt.targets.families import ONNXRUNTIME_INTEGER
from graphopt.targets.target import Target

_ALL = [
    Target(
        name="nnie", description="HiSilicon NNIE (Hi3559, Hi3519, Hi3516): logarithms", runtime="packed", architecture="nnie",
        weights=LogFormat(8), activations=LogFormat(8), weight_formats=(LogFormat(16),), activation_formats=(LogFormat(16),),
        integer=ONNXRUNTIME_INTEGER - {"mul", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax"},
        depthwise_norm=False, decompose=frozenset(), source="vendor's number formats: 8 and 16 bits, logarithmic",
    )
]  # fmt: skip
PACKED = {target.name: target for target in _ALL}

"""Hardware whose number formats no ONNX operator has: packed codes for its tools, run by simulation here."""

from __future__ import annotations

from graphopt.formats import LogFormat
from graphopt.targets.families import FIXED_POINT_INTEGER
from graphopt.targets.kernels import Kernels
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import Runtime
from graphopt.targets.target import Target

_NNIE = Target(
    name="nnie",
    description="HiSilicon NNIE (Hi3559, Hi3519, Hi3516): logarithms",
    formats=Formats(LogFormat(8), LogFormat(8), more_weights=(LogFormat(16),), more_activations=(LogFormat(16),)),
    runtime=Runtime("packed", architecture="nnie"),
    kernels=Kernels(integer=FIXED_POINT_INTEGER, depthwise_norm=False, decompose=frozenset()),
    source="vendor's number formats: 8 and 16 bits, logarithmic",
)
PACKED = {_NNIE.name: _NNIE}

"""CPUs through ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

from graphopt.formats import Format
from graphopt.targets.kernels import Kernels
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import Runtime
from graphopt.targets.target import Target

SIGNED_WEIGHTS = Format(bits=8, signed=True, symmetric=True, per_channel=True)

CPUS = {
    "arm": Target(
        name="arm",
        description="64-bit ARM CPUs through ONNX Runtime: signed 8-bit activations, which its NEON kernels fuse completely",
        formats=Formats(SIGNED_WEIGHTS, activations=Format(bits=8, signed=True, symmetric=False)),
        runtime=Runtime("onnxruntime", architecture="aarch64"),
    ),
    "x86": Target(
        name="x86",
        description="x86-64 CPUs with VNNI through ONNX Runtime: unsigned 8-bit activations, signed 8-bit weights",
        formats=Formats(SIGNED_WEIGHTS, activations=Format(bits=8, signed=False, symmetric=False)),
        runtime=Runtime("onnxruntime", architecture="x86_64"),
        kernels=Kernels(channel_multiple=16),
    ),
}
CPUS["x86-avx2"] = CPUS["x86"].replace(
    name="x86-avx2",
    description="x86-64 CPUs without VNNI through ONNX Runtime: 7-bit weights, as pairs of 8-bit products saturate there",
    weights=replace(SIGNED_WEIGHTS, bits=7),
    weight_bits=tuple(range(2, 8)),
    machine="avx2",
)

"""GPUs through TVM: kernels as CUDA or OpenCL source, beside the machine code that calls them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from graphopt.formats import FLOAT16_WITHOUT_SUBNORMALS, Format
from graphopt.targets.cpus import SIGNED_WEIGHTS
from graphopt.targets.families import TVM_INTEGER
from graphopt.targets.target import Target


def _gpu(
    name: str, description: str, kernels: Literal["cuda", "opencl"], architecture: str, triple: str, gpu: str
) -> Target:
    return Target(
        name=name,
        description=description,
        runtime="tvm",
        architecture=architecture,
        weights=SIGNED_WEIGHTS,
        activations=Format(bits=8, signed=True, symmetric=False),
        integer=TVM_INTEGER,
        tables=True,
        channel_multiple=32,
        decompose=frozenset(),
        triple=triple,
        cpu=gpu,
        kernels=kernels,
        source="CUDA programming guide: dp4a adds four products of signed bytes from compute capability 6.1 on"
        if kernels == "cuda"
        else "OpenCL 1.2: bytes and 32-bit integers are required of every device",
    )


_CUDA = _gpu(
    "tvm-cuda", "NVIDIA GPUs (Turing and later) through TVM: CUDA source", "cuda", "x86_64", "x86_64-linux-gnu", "sm_75"
)
_ORIN = _gpu(
    "tvm-jetson-orin", "NVIDIA Jetson Orin through TVM: CUDA source", "cuda", "aarch64", "aarch64-linux-gnu", "sm_87"
)
_OPENCL = _gpu(
    "tvm-opencl", "GPUs with OpenCL through TVM: OpenCL source", "opencl", "aarch64", "aarch64-linux-gnu", ""
)
_ADRENO = replace(
    _OPENCL,
    name="adreno",
    description="Qualcomm Adreno 5xx and 6xx through TVM: OpenCL source, float16, sums in float32",
    weights=FLOAT16_WITHOUT_SUBNORMALS,
    activations=FLOAT16_WITHOUT_SUBNORMALS,
    source="vendor's number formats: float16 without subnormal numbers",
)
GPUS = {target.name: target for target in (_CUDA, _ORIN, _OPENCL, _ADRENO)}

"""GPUs through TVM: kernels as CUDA or OpenCL source, beside the machine code that calls them."""

from __future__ import annotations

from dataclasses import replace

from graphopt.formats import FLOAT16_WITHOUT_SUBNORMALS, Format
from graphopt.targets.compiled import TVM_KERNELS
from graphopt.targets.cpus import SIGNED_WEIGHTS
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import CodeGeneration, Device, Runtime
from graphopt.targets.target import Target


def _gpu(name: str, description: str, device: Device, architecture: str, triple: str, gpu: str) -> Target:
    return Target(
        name=name,
        description=description,
        formats=Formats(SIGNED_WEIGHTS, activations=Format(bits=8, signed=True, symmetric=False)),
        runtime=Runtime("tvm", architecture, code=CodeGeneration(triple, gpu, device=device)),
        kernels=replace(TVM_KERNELS, channel_multiple=32),
        source="CUDA programming guide: dp4a adds four products of signed bytes from compute capability 6.1 on"
        if device == "cuda"
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
_ADRENO = _OPENCL.replace(
    name="adreno",
    description="Qualcomm Adreno 5xx and 6xx through TVM: OpenCL source, float16, sums in float32",
    weights=FLOAT16_WITHOUT_SUBNORMALS,
    activations=FLOAT16_WITHOUT_SUBNORMALS,
    source="vendor's number formats: float16 without subnormal numbers",
)
GPUS = {target.name: target for target in (_CUDA, _ORIN, _OPENCL, _ADRENO)}

"""GPUs, DSPs and accelerators whose vendor's compiler reads an ONNX file with QuantizeLinear and DequantizeLinear.

The artifact is that file, obeying the hardware's number formats; ONNX Runtime computes its answers here, in the arithmetic of
x86. What a vendor's compiler does with it was measured nowhere but where the README says so.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.formats import FLOAT16, Format
from graphopt.targets.families import FIXED_POINT_INTEGER, SHARING
from graphopt.targets.kernels import Kernels
from graphopt.targets.number_formats import Formats
from graphopt.targets.runtime import Runtime
from graphopt.targets.target import Target

S8 = Format(bits=8, signed=True, symmetric=True)
S8_PER_CHANNEL = replace(S8, per_channel=True)
S8_FULL = replace(S8, full_range=True)
U8 = Format(bits=8, signed=False, symmetric=False)
SHIFTED = replace(S8, power_of_two=True)  # Ristretto: fixed point with a radix point per tensor
SHIFTED_FULL = replace(SHIFTED, full_range=True)


def _sixteen(*formats: Format) -> tuple[Format, ...]:
    return tuple(replace(format, bits=16) for format in formats)


RISTRETTO = Formats(SHIFTED, SHIFTED_FULL, more_weights=_sixteen(SHIFTED), more_activations=_sixteen(SHIFTED_FULL))

KERNELS = Kernels(depthwise_norm=False)
WIDE = replace(KERNELS, channel_multiple=32)
FIXED_POINT = replace(KERNELS, integer=FIXED_POINT_INTEGER, decompose=frozenset())


def _vendor(
    name: str,
    description: str,
    source: str,
    formats: Formats,
    kernels: Kernels = KERNELS,
    *,
    static_shapes: bool = False,
    opset: int | None = None,
) -> Target:
    runtime = Runtime(
        "onnxruntime",
        architecture=name,
        machine="x86_64",
        static_shapes=static_shapes,
        vendor_compiler=True,
        opset=opset,
    )
    return Target(name, description, formats, runtime, kernels, source)


_ALL = [
    _vendor(
        "nvidia", "NVIDIA GPUs through TensorRT: explicit quantization, the rest in float16",
        "TensorRT documentation, Working with Quantized Types and Q/DQ placement: zero points are 0, biases float, a layer and "
        "the sum behind it one kernel; ONNX-TensorRT's list of operators: TensorRT 10.0 reads opsets 9 to 20",
        Formats(S8_PER_CHANNEL, S8_FULL, more_weights=(S8,), rest=FLOAT16, float_bias=True),
        replace(WIDE, fused_sums=True),
        opset=20,
    ),
    _vendor(
        "hexagon", "Qualcomm Hexagon (HTP v68 and later) through QNN or SNPE",
        "QNN HTP operator definitions; SNPE: 8 or 16 bits, asymmetric, one grid per layer",
        Formats(S8_PER_CHANNEL, U8, more_weights=(U8, S8), more_activations=_sixteen(U8)),
        replace(
            WIDE,
            float_output=frozenset(),  # a layer that hands out floats is left to the CPU
            # 4x4 and 8x8 pools are steps of 2x2 on the grid of the result, which saturate there
            shares=SHARING | {"average_pool"},
        ),
        static_shapes=True,
    ),
    _vendor(
        "ascend", "Huawei Ascend 310 through ACL", "AscendQuant: a scale and an offset; weights without offset",
        Formats(S8_PER_CHANNEL, replace(S8, symmetric=False), more_weights=(S8,), more_activations=(S8_FULL,)),
        WIDE,
    ),
    _vendor(
        "ceva", "CEVA DSPs", "vendor's number formats: 8 and 16 bits, uniform, asymmetric, per layer or channel",
        Formats(
            replace(U8, per_channel=True), U8,
            more_weights=(U8, S8, S8_PER_CHANNEL, *_sixteen(U8, replace(U8, per_channel=True), S8, S8_PER_CHANNEL)),
            more_activations=_sixteen(U8),
        ),
    ),
    _vendor(
        "sigmastar", "SigmaStar IPUs", "vendor's number formats: 8 and 16 bits, weights per channel, everything symmetric",
        Formats(
            S8_PER_CHANNEL, S8_FULL, more_weights=(S8, *_sixteen(S8, S8_PER_CHANNEL)), more_activations=_sixteen(S8_FULL)
        ),
    ),
    _vendor(
        "vitis", "Xilinx FPGAs (DPU) through Vitis AI",
        "MQBench documentation, Vitis: 8 bits per tensor, symmetric, power-of-two scales; Vitis AI 6.2, ONNX Operators: all "
        "up to opset 20",
        Formats(SHIFTED, SHIFTED_FULL), FIXED_POINT, opset=20,
    ),
    _vendor(
        "ambarella", "Ambarella CVFlow", "vendor's number formats: 8 and 16 bits, Ristretto",
        RISTRETTO, FIXED_POINT,
    ),
    _vendor("wuqi", "WuQi DSPs", "vendor's number formats: 8 and 16 bits, Ristretto", RISTRETTO, FIXED_POINT),
]  # fmt: skip
VENDORS = {target.name: target for target in _ALL}

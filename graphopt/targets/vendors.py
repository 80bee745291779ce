"""GPUs, DSPs and accelerators whose vendor's compiler reads an ONNX file with QuantizeLinear and DequantizeLinear.

The artifact is that file, obeying the hardware's number formats; ONNX Runtime computes its answers here, in the arithmetic of
x86. What a vendor's compiler does with it was measured nowhere but where the README says so.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.formats import FLOAT16, Format
from graphopt.targets.families import ONNXRUNTIME_INTEGER
from graphopt.targets.target import Target

S8 = Format(bits=8, signed=True, symmetric=True)
S8_PER_CHANNEL = replace(S8, per_channel=True)
S8_VALUES = replace(S8, full_range=True)
U8 = Format(bits=8, signed=False, symmetric=False)
SHIFTED = replace(S8, power_of_two=True)  # Ristretto: fixed point with a radix point per tensor
SHIFTED_VALUES = replace(SHIFTED, full_range=True)


def _sixteen(*formats: Format) -> tuple[Format, ...]:
    return tuple(replace(format, bits=16) for format in formats)


FIXED_POINT = ONNXRUNTIME_INTEGER - {"mul", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax"}


def _vendor(name: str, description: str, weights: Format, activations: Format, source: str, **others: object) -> Target:
    return Target(
        name=name, description=description, runtime="onnxruntime", architecture=name, machine="x86_64", weights=weights,
        activations=activations, depthwise_norm=False, source=source, vendor_compiler=True, **others,  # type: ignore[arg-type]
    )  # fmt: skip


_ALL = [
    _vendor(
        "nvidia", "NVIDIA GPUs through TensorRT: explicit quantization, the rest in float16",
        S8_PER_CHANNEL, S8_VALUES, "TensorRT documentation, Working with Quantized Types and Q/DQ placement: zero points are 0, "
        "biases float, a layer and the sum behind it one kernel",
        weight_formats=(S8,), channel_multiple=32, fused_sums=True, float_bias=True, rest=FLOAT16,
    ),
    _vendor(
        "hexagon", "Qualcomm Hexagon (HTP v68 and later) through QNN or SNPE",
        S8_PER_CHANNEL, U8, "QNN HTP operator definitions; SNPE: 8 or 16 bits, asymmetric, one grid per layer",
        weight_formats=(U8, S8), activation_formats=_sixteen(U8), channel_multiple=32, static_shapes=True,
        float_output=frozenset(),  # a layer that hands out floats is left to the CPU
        shares=frozenset({"average_pool"}),  # 4x4 and 8x8 pools are steps of 2x2 on the grid of the result, which saturate there
    ),
    _vendor(
        "ascend", "Huawei Ascend 310 through ACL",
        S8_PER_CHANNEL, replace(S8, symmetric=False), "AscendQuant: a scale and an offset; weights without offset",
        weight_formats=(S8,), activation_formats=(S8_VALUES,), channel_multiple=32,
    ),
    _vendor(
        "ceva", "CEVA DSPs", replace(U8, per_channel=True), U8,
        "vendor's number formats: 8 and 16 bits, uniform, asymmetric, per layer or channel",
        weight_formats=(U8, S8, S8_PER_CHANNEL, *_sixteen(U8, replace(U8, per_channel=True), S8, S8_PER_CHANNEL)),
        activation_formats=_sixteen(U8),
    ),
    _vendor(
        "sigmastar", "SigmaStar IPUs", S8_PER_CHANNEL, S8_VALUES,
        "vendor's number formats: 8 and 16 bits, weights per channel, everything symmetric",
        weight_formats=(S8, *_sixteen(S8, S8_PER_CHANNEL)), activation_formats=_sixteen(S8_VALUES),
    ),
    _vendor(
        "vitis", "Xilinx FPGAs (DPU) through Vitis AI", SHIFTED, SHIFTED_VALUES,
        "MQBench documentation, Vitis: 8 bits per tensor, symmetric, power-of-two scales",
        integer=FIXED_POINT, decompose=frozenset(),
    ),
    _vendor(
        "ambarella", "Ambarella CVFlow", SHIFTED, SHIFTED_VALUES, "vendor's number formats: 8 and 16 bits, Ristretto",
        weight_formats=_sixteen(SHIFTED), activation_formats=_sixteen(SHIFTED_VALUES), integer=FIXED_POINT, decompose=frozenset(),
    ),
    _vendor(
        "wuqi", "WuQi DSPs", SHIFTED, SHIFTED_VALUES, "vendor's number formats: 8 and 16 bits, Ristretto",
        weight_formats=_sixteen(SHIFTED), activation_formats=_sixteen(SHIFTED_VALUES), integer=FIXED_POINT, decompose=frozenset(),
    ),
]  # fmt: skip
VENDORS = {target.name: target for target in _ALL}

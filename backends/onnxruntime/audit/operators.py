"""Operators by what they compute in: integer, float, or neither."""

from __future__ import annotations

# Computing operators by the position of their weight (or second operand).
INTEGER_WORK = {
    "QLinearConv": 3,
    "QGemm": 3,
    "QLinearMatMul": 3,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
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
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
# Integer operators whose answer is float.
TO_FLOAT = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
# Answers that are sizes, positions or truths, whatever they are computed from.
INDICES = {
    "Shape", "Size", "NonZero", "ArgMax", "ArgMin", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or",
    "Not", "IsNaN", "IsInf", "OneHot",
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

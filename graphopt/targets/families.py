"""Families of `graphopt.ir.ops` by what kernels make of them."""

from __future__ import annotations

# Families of graphopt.ir.ops that have integer kernels in ONNX Runtime's CPU provider (measured on 1.31, opset 18-21).
# Convolution and linear layers start an integer region, the others join one.
ONNXRUNTIME_INTEGER = frozenset(
    {
        "conv", "linear", "add", "mul", "concat", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax", "average_pool",
        "global_average_pool",
    }
)  # fmt: skip
# Kernels that move 8-bit codes as they are: output and input share one grid.
ONNXRUNTIME_MOVES = frozenset(
    {
        "max_pool",
        "reshape",
        "transpose",
        "slice",
        "split",
        "getitem",
        "pad",
        "resize_nearest",
        "expand",
        "identity",
        "shuffle",
    }
)

# TVM computes any function of one code by a table.
TVM_INTEGER = ONNXRUNTIME_INTEGER | {"hard_swish", "silu", "gelu", "tanh"}

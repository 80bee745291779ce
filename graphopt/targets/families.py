"""Families of operators: their names, and which of them kernels compute in integer.

What a family means is said in `graphopt.ir.ops`, which adds the families of operators that others register.
"""

from __future__ import annotations

from collections.abc import Collection

from graphopt.utils.errors import InputError, suggestion

FAMILIES = frozenset({
    "adaptive_average_pool", "add", "average_pool", "batch_norm", "channel_clamp", "choose", "clamp", "concat", "conv",
    "conv_transpose", "div", "expand", "flip", "gelu", "getitem", "global_average_pool", "hard_sigmoid", "hard_swish",
    "identity", "leaky_relu",
    "linear", "matmul", "max_pool", "mean", "mul", "pad", "prelu", "relu", "reshape", "resize_linear", "resize_nearest", "roll",
    "shuffle", "sigmoid", "silu", "slice", "softmax", "split", "stack", "sub", "tanh", "transpose",
})  # fmt: skip
_KNOWN = set(FAMILIES)  # and those that others register


def add_family(name: str) -> None:
    """Make the family of a registered operator known, for this process."""
    _KNOWN.add(name)


def check_families(what: str, families: Collection[str]) -> None:
    """Raise `InputError` where a family is unknown, with the nearest that is known."""
    if isinstance(families, str) or not isinstance(families, Collection):
        raise InputError(f"{what} must be a set of families, such as frozenset({{'conv'}}), got {families!r}")
    for name in sorted(set(families) - _KNOWN, key=str):
        hint = suggestion(str(name), sorted(_KNOWN)) or f"known: {', '.join(sorted(_KNOWN))}. "
        raise InputError(
            f"{what}: unknown family {name!r}; {hint}One of your own is known once its operator is registered "
            "(graphopt.ir.ops.register)"
        )


# Families of graphopt.ir.ops that have integer kernels in ONNX Runtime's CPU provider (measured on 1.31, opset 18-21).
# Convolution and linear layers start an integer region, the others join one.
ONNXRUNTIME_INTEGER = frozenset(
    {
        "conv", "linear", "add", "mul", "concat", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax", "average_pool",
        "global_average_pool", "choose",
    }
)  # fmt: skip
SHARING = frozenset({"choose"})  # what chooses between codes needs them on one grid
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

# TVM computes any function of one code by a table, and those with a slope for each channel.
TVM_INTEGER = ONNXRUNTIME_INTEGER | {"hard_swish", "silu", "gelu", "tanh", "prelu"}

# Accelerators that multiply and add in fixed point, and have no integer kernels of functions and products.
FIXED_POINT_INTEGER = ONNXRUNTIME_INTEGER - {"mul", "sigmoid", "hard_sigmoid", "leaky_relu", "softmax"}

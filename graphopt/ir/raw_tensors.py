"""Tensors as raw bytes, row by row, described by element type and shape; checked against each other before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.utils.errors import InputError
from graphopt.utils.printing import dtype_name

DTYPES = {
    name: found
    for name in (
        "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
    if (found := getattr(torch, name, None)) is not None
}  # fmt: skip
LARGEST = 2**62  # beyond that, torch's own arithmetic on sizes overflows


def content(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Element type, shape, and strides where those matter.

    Raises:
        InputError: it is sparse, quantized, or of a type that files do not hold.
    """
    name = dtype_name(tensor.dtype)
    if tensor.layout != torch.strided or tensor.is_quantized or name not in DTYPES:
        raise InputError(f"a {tensor.layout} tensor of type {tensor.dtype} cannot be saved")
    described: dict[str, Any] = {"dtype": name, "shape": list(tensor.shape)}
    if not tensor.is_contiguous() and 0 not in tensor.stride():  # channels last, transposed: kernels may choose by it
        described["stride"] = list(torch.empty_like(tensor).stride())
    return described


def check(described: Any, size: int) -> None:
    """Raise ValueError where a description is malformed or does not take exactly `size` bytes."""
    if not isinstance(described, dict) or described.keys() - {"dtype", "shape", "stride"}:
        raise ValueError("not a tensor's description")
    dtype, shape, stride = DTYPES.get(described["dtype"]), described["shape"], described.get("stride")
    if dtype is None or not are_sizes(shape):
        raise ValueError(f"not a tensor's description: {described['dtype']!r} {str(shape)[:80]}")
    if (count := math.prod(shape)) * dtype.itemsize != size:
        raise ValueError(f"{described['dtype']}{shape} takes {count * dtype.itemsize} bytes, and there are {size}")
    if stride is not None and not (are_sizes(stride) and _dense(shape, stride)):
        raise ValueError(f"strides {stride} do not lay out {shape} without gaps")


def read(content: bytes, described: dict[str, Any]) -> Tensor:
    """The tensor again.

    Raises:
        ValueError: the bytes are not what the description says.
    """
    check(described, len(content))
    dtype, shape = DTYPES[described["dtype"]], described["shape"]
    if not content:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
    if dtype == torch.bool and int(tensor.view(torch.uint8).max()) > 1:
        raise ValueError("a bool that is neither 0 nor 1")
    if "stride" in described:
        return torch.empty_strided(shape, described["stride"], dtype=dtype).copy_(tensor)
    return tensor


def are_sizes(data: Any) -> bool:
    """Whether this is a list of sizes, no more than torch can multiply."""
    if not isinstance(data, list) or len(data) > 64 or not all(type(s) is int and 0 <= s < LARGEST for s in data):
        return False
    return bool(math.prod(s for s in data if s) < LARGEST)


def _dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether every element has a place of its own among as many places; the order of dimensions is free."""
    if len(shape) != len(stride) or 0 in shape:
        return len(shape) == len(stride)
    expected = 1
    for step, size in sorted((t, s) for t, s in zip(stride, shape, strict=True) if s > 1):
        if step != expected:
            return False
        expected *= size
    return True

"""What a kernel computes, as plain data: equal specs are one function of the compiled module.

Activations are NHWC, channels innermost; a linear layer is a 1x1 convolution over (1, 1, rows, features). Numbers that differ
from layer to layer without changing the code (weights, biases, multipliers) are arguments of the function, no part of its spec.
The arithmetic of results is in `epilogue`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from graphopt.backends.tvm.schedules.epilogue import FLOAT, INTEGER, Codes, Epilogue, Sum, require

Padding = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Conv:
    """A convolution or linear layer.

    Attributes:
        shape: of the data, (n, h, w, c). channels: of the result.
        kernel, stride, dilation: (height, width). padding: ((top, bottom), (left, right)).
        data: dtype of the data; weights have it too, int8 for integers, and float results unless the epilogue says otherwise.
        zero_point: of the data, which is also what padding holds.
        bits: of a weight as it is stored: 8; 2 for three numbers to a channel, zero among them; 1 for two, signs.
        signs: whether the data are signs, -1 and 1 around the zero point.
    """

    shape: tuple[int, int, int, int]
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    data: str = "float32"
    zero_point: int = 0
    epilogue: Epilogue = field(default_factory=Epilogue)
    bits: int = 8
    signs: bool = False

    def __post_init__(self) -> None:
        require(self.bits in (1, 2, 8), f"weights of {self.bits} bits; kernels exist for 1, 2 and 8")
        require(self.bits == 8 or self.data in INTEGER, "weights of few bits are for data of codes")
        require(self.data in INTEGER + FLOAT, f"data of {self.data}; kernels exist for {', '.join(INTEGER + FLOAT)}")
        require(min(self.shape) > 0 and self.channels > 0, f"empty shape {self.shape} -> {self.channels} channels")
        require(
            self.groups > 0 and self.shape[3] % self.groups == 0 and self.channels % self.groups == 0,
            f"{self.groups} groups do not divide {self.shape[3]} -> {self.channels} channels",
        )
        require(self.integer or self.epilogue.result is None, "a float layer has no codes; quantize its result")
        _require_window(self)

    @property
    def integer(self) -> bool:
        return self.data in INTEGER

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        return (self.shape[0], *windows(self), self.channels)

    @property
    def result_dtype(self) -> str:
        if self.epilogue.table:
            return self.epilogue.table
        codes = self.epilogue.codes
        return codes.dtype if codes else "float32" if self.integer else self.epilogue.dtype or self.data

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.channels, self.shape[3] // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        return prod(self.result_shape) * prod(self.weight_shape[1:])


@dataclass(frozen=True)
class Pool:
    """Maxima or means over windows.

    Attributes:
        kind: "max" or "average".
        data, zero_point, scale: dtype of the data, and what its codes mean.
        result, result_scale: codes of an average of codes, and their scale. Maxima keep their codes.
        count_padding: whether padding counts as elements of an average.
    """

    kind: Literal["max", "average"]
    shape: tuple[int, int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    data: str = "float32"
    zero_point: int = 0
    scale: float = 1.0
    result: Codes | None = None
    result_scale: float = 1.0
    count_padding: bool = True

    def __post_init__(self) -> None:
        require(self.kind in ("max", "average"), f"pooling {self.kind!r}; there are 'max' and 'average'")
        require(self.data in INTEGER + FLOAT, f"data of {self.data}; kernels exist for {', '.join(INTEGER + FLOAT)}")
        averaged_codes = self.kind == "average" and self.data in INTEGER
        require((self.result is not None) == averaged_codes, "averages of codes, and only they, need `result`")
        _require_window(self)

    @property
    def whole(self) -> bool:
        """One window that is the image."""
        return self.shape[1:3] == self.kernel and self.padding == ((0, 0), (0, 0))

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        return (self.shape[0], *windows(self), self.shape[3])

    @property
    def result_dtype(self) -> str:
        return self.result.dtype if self.result else self.data


@dataclass(frozen=True)
class Quantize:
    """q = sat(rne(x / scale) + z)."""

    shape: tuple[int, ...]
    scale: float
    result: Codes
    data: str = "float32"


@dataclass(frozen=True)
class Planes:
    """The same for images of few channels, [images, channels, pixels] -> [images, pixels, channels]."""

    shape: tuple[int, int, int]
    scale: float
    result: Codes
    data: str = "float32"

    @property
    def result_shape(self) -> tuple[int, int, int]:
        images, channels, pixels = self.shape
        return images, pixels, channels


@dataclass(frozen=True)
class Dequantize:
    """x = f32(q - z) * scale."""

    shape: tuple[int, ...]
    scale: float
    zero_point: int
    data: str = "uint8"
    result: str = "float32"


@dataclass(frozen=True)
class Add:
    """a + b of equal shapes: codes where `sum` is given, or the entries of a table of this dtype; else floats, clamped."""

    shape: tuple[int, ...]
    a: str = "float32"
    b: str = "float32"
    sum: Sum | None = None
    clamp: tuple[float | None, float | None] = (None, None)
    table: str | None = None


@dataclass(frozen=True)
class Multiply:
    """a * b of codes; an operand repeats along dimensions where its size is 1.

    Attributes:
        a_shape, b_shape: of equal rank. a, b: their dtypes. a_zero, b_zero: their zero points.
        ratio: s_a s_b / s_q, a float32.
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    a_zero: int
    b_zero: int
    ratio: float
    result: Codes
    a: str = "uint8"
    b: str = "uint8"

    def __post_init__(self) -> None:
        pairs = list(zip(self.a_shape, self.b_shape, strict=True))
        require(
            all(a == b or 1 in (a, b) for a, b in pairs),
            f"{self.a_shape} and {self.b_shape} do not repeat to one shape",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(max(a, b) for a, b in zip(self.a_shape, self.b_shape, strict=True))


@dataclass(frozen=True)
class Lookup:
    """A function of one code."""

    shape: tuple[int, ...]
    data: str = "uint8"
    result: str = "uint8"


Elementwise = Quantize | Dequantize | Add | Lookup
Spec = Conv | Pool | Multiply | Planes | Elementwise


def windows(spec: Conv | Pool) -> tuple[int, int]:
    """Rows and columns of the result."""
    reach = zip(spec.shape[1:3], spec.padding, spec.dilation, spec.kernel, spec.stride, strict=True)
    rows, columns = ((n + p0 + p1 - d * (k - 1) - 1) // s + 1 for n, (p0, p1), d, k, s in reach)
    return rows, columns


def _require_window(spec: Conv | Pool) -> None:
    require(
        min(*spec.kernel, *spec.stride, *spec.dilation) > 0 and min(p for pair in spec.padding for p in pair) >= 0,
        f"kernel {spec.kernel}, stride {spec.stride} and dilation {spec.dilation} must be positive, "
        f"padding {spec.padding} not negative",
    )
    require(min(windows(spec)) > 0, f"kernel {spec.kernel} does not fit {spec.shape} padded by {spec.padding}")

"""What follows a sum, as plain data: the codes a result is stored in, a second operand, ends.

Integer arithmetic is that of `graphopt.simulate` on x86, to the last bit. With codes x, w, q, zero points z, scales s and rne
rounding halves to even:

    layer      acc = sum (x - z_x) w + bias, exact in 32 bits; q = sat(rne(f32(acc) * multiplier) + z)
                                                                       multiplier = s_x s_w / s_q
    sum        q = sat(rne(fma(a, r_a, fma(b, r_b, offset))))          r = s / s_q, offset = z_q - fma(r_a, z_a, r_b z_b)
    slopes     q' = sat(rne(f32(q - z) * m) + z')                      m = negative[channel] where q < z, else positive[channel]
    table      q = entries[q]                                          a function of one code, last of all
    mean       q = sat(rne(f32(sum of (x - z_x)) * multiplier) + z)    multiplier = s_x / (s_q pixels)
    average    q = sat(rne(mean of the values / s_q + z))              over windows; the mean in float32, row by row
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

INTEGER = ("uint8", "int8")
FLOAT = ("float32", "float16")


@dataclass(frozen=True)
class Codes:
    """The integers a result is stored in: saturated to [low, high], zero_point standing for zero."""

    dtype: str = "uint8"
    zero_point: int = 0
    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        require(self.dtype in INTEGER, f"codes are {' or '.join(INTEGER)}, not {self.dtype}")
        info = np.iinfo(self.dtype)
        for name, end in (("low", int(info.min)), ("high", int(info.max))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, end)
            require(info.min <= getattr(self, name) <= info.max, f"{name} {getattr(self, name)} is no {self.dtype}")

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the greatest code."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


@dataclass(frozen=True)
class Sum:
    """a + b of quantized values: q = sat(rne(fma(a, ratio_a, fma(b, ratio_b, offset)))). The numbers are float32.

    Attributes:
        ratio_a, ratio_b: scale of the operand / scale of the sum.
        offset: zero point of the sum, less what the operands' zero points contribute.
        result: codes of the sum; its zero point is part of `offset`.
    """

    ratio_a: float
    ratio_b: float
    offset: float
    result: Codes

    @classmethod
    def of(cls, a: tuple[float, int], b: tuple[float, int], scale: float, result: Codes) -> Sum:
        """From (scale, zero point) of the operands and the scale of the sum."""
        ratio_a, ratio_b = (np.float32(s) / np.float32(scale) for s, _ in (a, b))
        inner = _fma(ratio_a, a[1], ratio_b * np.float32(b[1]))
        return cls(float(ratio_a), float(ratio_b), float(np.float32(result.zero_point) - inner), result)


@dataclass(frozen=True)
class Epilogue:
    """What happens to a sum while it is in registers: scale or requantize, add, clamp.

    Attributes:
        bias: whether the layer has one (int32 codes of scale s_x s_w, or float).
        result: codes of an integer layer's own result; None leaves it in float: f32(acc) * multiplier.
        residual: dtype of a second operand of the result's shape that is added, or None.
        sum: how codes are added (`result` gives the layer's own); None adds floats.
        second: whether the layer is the second operand of the sum.
        clamp: ends of a float result, applied last; None where there is none.
        rounded: dtype that a float layer's own result is rounded to before something is added.
        dtype: of a float layer's result; None: its data's.
        slopes: codes that the resulting ones become by a function with one slope below zero and another above, for each channel;
            None: there is none.
        table: dtype of the entries of a function of the resulting codes, which are stored in their place; None: there is none.
    """

    bias: bool = True
    result: Codes | None = None
    residual: str | None = None
    sum: Sum | None = None
    second: bool = False
    clamp: tuple[float | None, float | None] = (None, None)
    rounded: str | None = None
    dtype: str | None = None
    slopes: Codes | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        functions = self.table is not None or self.slopes is not None
        require(
            not functions or self.result is not None, "a table or slopes are functions of codes, and there are none"
        )
        if self.sum is not None:
            require(self.result is not None, "a quantized sum needs the codes of the layer's own result")
            require(self.residual in INTEGER, f"a quantized sum needs a residual of codes, not {self.residual}")
        elif self.residual is not None:
            require(self.result is None, "a residual of codes needs `sum`, which says how it is added")
            require(self.residual in FLOAT, f"a float sum needs a float residual, not {self.residual}")
        if self.result is not None:
            require(self.clamp == (None, None), "codes are clamped by the ends of their format, not by `clamp`")

    @property
    def codes(self) -> Codes | None:
        """What is looked up, or stored where there is no table; None for floats."""
        return self.slopes or (self.sum.result if self.sum else self.result)


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _fma(a: np.float32, b: int, c: np.float32) -> np.float32:
    """a * b + c rounded once: the float32 next to the exact value."""
    exact = Fraction(float(a)) * b + Fraction(float(c))
    near = np.float32(float(exact))
    around = (near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf)))
    return min(around, key=lambda value: abs(Fraction(float(value)) - exact))

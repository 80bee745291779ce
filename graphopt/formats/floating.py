"""Floating-point numbers of 16 bits and fewer: float16, bfloat16, and what lies between, as IEEE 754 rounds to them.

    x^ = round(x / step) * step         step = 2^(max(floor(log2 |x|), least) - mantissa_bits), halves to even
    least = 2 - 2^(exponent_bits - 1)   the exponent of the smallest normal number

What rounds beyond the largest number becomes infinite. GPUs such as Qualcomm's Adreno have no subnormal numbers: with
`subnormals=False` a result under 2^least becomes zero. Codes are the bit patterns.

Parameters: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.formats.protocol import Quantizer
from graphopt.utils.errors import InputError
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    import torch
    from torch import Tensor

    from graphopt.formats.protocol import Method, Parameters
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class FloatFormat:
    """Attributes:
    exponent_bits: 2 to 8.
    mantissa_bits: 1 to 10, without the leading one.
    subnormals: whether there are numbers smaller than 2^least.
    """

    per_channel: ClassVar[bool] = False
    block: ClassVar[int] = 0

    exponent_bits: int = 5
    mantissa_bits: int = 10
    subnormals: bool = True

    def __post_init__(self) -> None:
        for name, least, most in (("exponent_bits", 2, 8), ("mantissa_bits", 1, 10)):
            given = getattr(self, name)
            if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most:
                raise InputError(f"{name} must be a whole number from {least} to {most}, got {given!r}")
        if self.bits > 16:
            raise InputError(
                f"{self.exponent_bits} bits of exponent and {self.mantissa_bits} of mantissa are more than 16 with the sign"
            )

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def code_range(self) -> tuple[int, int]:
        return 0, (1 << self.bits) - 1

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE_FLOAT

        return FAKE_QUANTIZE_FLOAT

    @property
    def least(self) -> int:
        """The exponent of the smallest normal number."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float((2.0 - 2.0**-self.mantissa_bits) * 2.0 ** (1 - self.least))

    def __str__(self) -> str:
        name = {(5, 10): "float16", (8, 7): "bfloat16"}.get((self.exponent_bits, self.mantissa_bits))
        name = name or f"float{self.bits} e{self.exponent_bits}m{self.mantissa_bits}"
        return name if self.subnormals else f"{name} without subnormals"

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        if x.numel():
            self._check(float(x.detach().abs().max()))
        return Quantizer(self)

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        self._check(max(-low, high))
        return Quantizer(self)

    def _check(self, reach: float) -> None:
        if reach > self.largest:
            raise InputError(
                f"{reach:.4g} is beyond the largest {self} number, {self.largest:.6g}; rescale, or take a format with more "
                "bits of exponent, such as bfloat16"
            )

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        nearest = rounded(x, self).double()
        size, special = nearest.abs(), (1 << self.exponent_bits) - 1
        exponent = torch.where(size > 0, torch.frexp(size).exponent - 1, self.least).clamp(min=self.least)
        unit = torch.ldexp(size, self.mantissa_bits - exponent)  # mantissa with the leading one, if there is one
        pattern = unit + (exponent - self.least).double() * 2.0**self.mantissa_bits
        pattern = torch.where(torch.isinf(size), float(special << self.mantissa_bits), pattern)
        pattern = torch.where(torch.isnan(size), float((special << self.mantissa_bits) + 1), pattern)
        return pattern.int() + (torch.signbit(nearest).int() << (self.bits - 1))

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        mantissa = codes & ((1 << self.mantissa_bits) - 1)
        field = (codes >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        lead = (field > 0).int() << self.mantissa_bits
        size = torch.ldexp((mantissa + lead).double(), field.clamp(min=1) - 1 + self.least - self.mantissa_bits)
        special = field == (1 << self.exponent_bits) - 1
        size = torch.where(special, torch.where(mantissa > 0, torch.nan, torch.inf), size)
        return torch.where((codes >> (self.bits - 1)) & 1 == 1, -size, size).float()

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        return -self.largest, self.largest

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (self.exponent_bits, self.mantissa_bits, self.subnormals)


FLOAT16 = FloatFormat(5, 10)
FLOAT16_WITHOUT_SUBNORMALS = FloatFormat(5, 10, subnormals=False)
BFLOAT16 = FloatFormat(8, 7)
FLOAT16_FORMATS = (FLOAT16, FLOAT16_WITHOUT_SUBNORMALS)


def from_arguments(exponent_bits: int, mantissa_bits: int, subnormals: bool) -> Quantizer:
    return Quantizer(FloatFormat(exponent_bits, mantissa_bits, subnormals))


def rounded(x: Tensor, format: FloatFormat) -> Tensor:
    """The nearest number of the format, in x's type; every step is exact in float64."""
    wide = x.double()
    exponent = (torch.frexp(wide).exponent - 1).clamp(min=format.least) - format.mantissa_bits
    found = torch.ldexp(torch.round(torch.ldexp(wide, -exponent)), exponent)
    found = torch.where(torch.isfinite(wide), found, wide)
    found = torch.where(found.abs() > format.largest, torch.copysign(torch.tensor(torch.inf), wide), found)
    if not format.subnormals:
        found = torch.where(found.abs() < 2.0**format.least, torch.copysign(torch.zeros(()), wide), found)
    return found.to(x.dtype)

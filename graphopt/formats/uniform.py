"""Whole numbers times a scale: the uniform integer formats and their arithmetic.

    q    = clamp(round(x / scale) + zero_point, quant_min, quant_max)      round half to even
    x^   = (q - zero_point) * scale

These are ONNX's QuantizeLinear and DequantizeLinear to the last bit (division, not a product with the reciprocal; rounding
before the zero point is added), so what a graph simulates is what the runtime computes.

The operator `graphopt::fake_quantize` computes x^ with a gradient: straight-through for x inside the range (Bengio et al.
2013), and the learned-step-size gradient for the scale (Esser et al. 2020, section 2.1).

Scale and zero point are one number, or run along one dimension of x (`axis`), or, with `block` = B, along x with B elements of
that dimension to each: the shape of x with ceil(n / B) in place of n, as in ONNX from opset 21. (The last block may be shorter.)

Parameters: `scale`, float32, and `zero_point`, int32, [] or [channels].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.formats.protocol import Quantizer, broadcast, check_bits, rows
from graphopt.utils.errors import InputError
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    import torch
    from torch import Tensor
    from torch.fx.node import Node

    from graphopt.formats.protocol import Method, NumberFormat, Parameters
else:
    torch = lazy("torch")

SMALLEST_SCALE = 2.0**-40  # keeps products of two scales far from float32's subnormals
# Of one channel or block of a weight, beside others that are larger: its product with the scale of a value is still normal.
SMALLEST_CHANNEL_SCALE = 2.0**-80


@dataclass(frozen=True)
class Format:
    """A uniform integer number format.

    Attributes:
        bits: 2 to 16.
        signed: two's complement, else unsigned.
        symmetric: the zero point is 0 (signed, and the most negative code is unused) or the middle code (unsigned);
            otherwise affine: the zero point follows the range.
        per_channel: one scale for every output channel, else one for the whole tensor.
        power_of_two: the scale is a power of two, so that rescaling is a shift.
        full_range: a signed symmetric format uses the most negative code, too, as saturating hardware does.
    """

    block: ClassVar[int] = 0

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    per_channel: bool = False
    power_of_two: bool = False
    full_range: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, 16)

    @property
    def quant_min(self) -> int:
        if not self.signed:
            return 0
        return int(self.symmetric and not self.full_range) - (1 << (self.bits - 1))

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The integer type codes are stored in."""
        if self.bits > 8:
            return torch.int16 if self.signed else torch.uint16
        return torch.int8 if self.signed else torch.uint8

    def __str__(self) -> str:
        words = [f"{'s' if self.signed else 'u'}{self.bits}", "symmetric" if self.symmetric else "affine"]
        words += ["per channel" if self.per_channel else "per tensor"]
        return " ".join(words + ["power of two"] * self.power_of_two + ["full range"] * self.full_range)

    # ---- As every number format (`graphopt.formats.protocol`) ------------------------------------------------------

    @property
    def code_range(self) -> tuple[int, int]:
        return self.quant_min, self.quant_max

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE

        return FAKE_QUANTIZE

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        axis = axis if self.per_channel else -1
        flat = rows(x.detach(), axis)
        low, high = torch.aminmax(flat, dim=1)
        if method == "mse":
            low, high = least_error_range(flat, self, rows(importance, axis) if importance is not None else None)
        scale, zero_point = scale_and_zero_point(low, high, self)
        return Quantizer(self, (scale, zero_point) if axis >= 0 else (scale[0], zero_point[0]), axis)

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        if method == "mse":
            low, high = (float(end[0]) for end in least_error_range(seen[None].float(), self, counts[None]))
        return Quantizer(self, scale_and_zero_point(torch.tensor(low), torch.tensor(high), self))

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        scale, zero_point = parameters
        return quantize(x, scale, zero_point, self.quant_min, self.quant_max, axis).int()

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        scale, zero_point = parameters
        return dequantize(codes, scale, zero_point, axis)

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        scale, zero_point = parameters
        low, high = ((code - zero_point) * scale for code in self.code_range)
        return float(low.min()), float(high.max())

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (*parameters, self.quant_min, self.quant_max, axis)


def with_bits(format: NumberFormat, bits: int) -> Format:
    """The same format in so many bits.

    Raises:
        InputError: it is not uniform.
    """
    if not isinstance(format, Format):
        raise InputError(f"only uniform formats come in any number of bits, not {format}")
    return replace(format, bits=bits)


def from_arguments(scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int) -> Quantizer:
    """What these arguments of `fake_quantize` say; scales that all are powers of two count as such by choice."""
    bits = (quant_max - quant_min).bit_length()
    signed = quant_min < 0
    middle = 0 if signed else 1 << (bits - 1)
    symmetric = quant_min == -quant_max if signed else bool((zero_point == middle).all())
    power_of_two = bool((torch.frexp(scale).mantissa == 0.5).all())
    return Quantizer(Format(bits, signed, symmetric, axis >= 0, power_of_two), (scale, zero_point), axis)


def reach(low: Tensor, high: Tensor) -> Tensor:
    """How far from zero the values of a range lie at most. (Its width does not tell: equal values have none.)"""
    return torch.maximum(low.abs(), high.abs())


def scale_and_zero_point(low: Tensor, high: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """The grid that covers [low, high] and zero.

    Args:
        low, high: range ends, float32, shape [] or [channels].
        format: the number format; `per_channel` is for the caller to have honoured in the shape.

    Returns:
        scale (float32) and zero point (int32), of the same shape.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    if format.symmetric:
        middle = 0 if format.signed else 2 ** (format.bits - 1)
        scale = reach(low, high) / (format.quant_max - middle)
        zero_point = torch.full_like(scale, middle)
        if not format.signed and bool((low >= 0).all()):  # nothing negative: spend every code on the positive side
            scale, zero_point = reach(low, high) / format.quant_max, torch.zeros_like(scale)
    else:
        scale = (high - low) / (format.quant_max - format.quant_min)
        zero_point = torch.zeros_like(scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    scale = scale.clamp(min=SMALLEST_CHANNEL_SCALE if format.per_channel else SMALLEST_SCALE)
    if format.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale) - 1e-9))
    scale = scale.float()
    if not format.symmetric:
        zero_point = (format.quant_min - torch.round(low / scale.double())).clamp(format.quant_min, format.quant_max)
    return scale, zero_point.int()


def least_error_range(rows: Tensor, format: Format, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of each row of [channels, n] the range with the least (weighted) squared error: the best of 80 shares of the widest one."""
    low, high = torch.aminmax(rows, dim=1)
    best, best_low, best_high = torch.full_like(low, torch.inf, dtype=torch.float64), low, high
    for step in range(80):
        share = 1 - step / 100
        scale, zero_point = scale_and_zero_point(low * share, high * share, format)
        codes = quantize(rows, scale, zero_point, format.quant_min, format.quant_max, 0)
        error = (dequantize(codes, scale, zero_point, 0) - rows).double().square()
        total = (error if importance is None else error * importance).sum(1)
        better = total < best
        best = torch.where(better, total, best)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    return best_low, best_high


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int = -1, block: int = 0
) -> Tensor:
    """Codes of x as float32 whole numbers (exact up to 24 bits; wider grids are computed in float64)."""
    wide = quant_max - quant_min >= 2**24
    scale, zero_point = broadcast(scale, x, axis, block), broadcast(zero_point, x, axis, block)
    codes = x.double() / scale.double() if wide else x / scale
    return codes.round_().add_(zero_point).clamp_(quant_min, quant_max)  # in place: weights are large


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int = -1, block: int = 0) -> Tensor:
    """(codes - zero_point) * scale in float32."""
    scale, zero_point = broadcast(scale, codes, axis, block), broadcast(zero_point, codes, axis, block)
    return (codes - zero_point).to(scale.dtype).mul_(scale)


def in_blocks(quantizer: Node) -> bool:
    """Whether a `fake_quantize` call has a scale per block: that of a weight whose layer reads float values."""
    return len(quantizer.args) > 6

"""Block floating point: whole numbers of a few bits, and one exponent to every few of them.

    x^ = code * 2^exponent       code = clamp(round(x / 2^exponent), -top, top)      top = 2^(bits - 1) - 1

Along one dimension, `block` elements share an exponent of 8 bits: the least under which the largest of them rounds to no more
than `top`. A product of two blocks is an integer product and a sum of exponents. Weights have their exponents stored; values get
theirs anew from every tensor, so that no range has to be known.

Parameters: `exponent`, int8, the shape of the tensor with ceil(n / block) along the axis; none where blocks find their own.
Paper:  Darvish Rouhani et al. 2020, "Pushing the Limits of Narrow Precision Inferencing at Cloud Scale with Microsoft Floating
        Point".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.formats.protocol import Quantizer, broadcast, check_bits
from graphopt.utils.errors import InputError
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from graphopt.formats.protocol import Method, Parameters
else:
    torch, F = lazy("torch"), lazy("torch.nn.functional")

LEAST, MOST = -126, 127  # exponents: steps are normal float32 numbers
SHRINK = 2  # how much smaller an exponent may be than one that clips nothing, in the search for the least squared error


@dataclass(frozen=True)
class BlockFloat:
    """Attributes:
    bits: of a mantissa, 2 to 16, the sign included.
    block: elements that share an exponent, along the input channels of weights and the channels of values.
    """

    per_channel: ClassVar[bool] = False

    bits: int = 8
    block: int = 16

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, 16)
        if not isinstance(self.block, int) or isinstance(self.block, bool) or self.block < 1:
            raise InputError(f"block must be a whole number of at least 1, got {self.block!r}")

    @property
    def top(self) -> int:
        """The largest mantissa."""
        return (1 << (self.bits - 1)) - 1

    @property
    def code_range(self) -> tuple[int, int]:
        return -self.top, self.top

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE_BLOCK_FLOAT

        return FAKE_QUANTIZE_BLOCK_FLOAT

    def __str__(self) -> str:
        return f"block float {self.bits} in blocks of {self.block}"

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        self._check(axis)
        x = x.detach()
        widest = self.exponent(x, axis)
        if method == "minmax":
            return Quantizer(self, (widest,), axis)
        weight = importance.double() if importance is not None else torch.ones_like(x, dtype=torch.float64)
        best, found = torch.full(widest.shape, torch.inf, dtype=torch.float64), widest
        for shift in range(SHRINK + 1):
            exponent = (widest.int() - shift).clamp(min=LEAST).to(torch.int8)
            rounded = self.dequantize(self.quantize(x, (exponent,), axis), (exponent,), axis)
            error = self._split((rounded.double() - x).square() * weight, axis).sum(axis + 1)
            found, best = torch.where(error < best, exponent, found), torch.minimum(error, best)
        return Quantizer(self, (found,), axis)

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        self._check(axis)
        return Quantizer(self, (), axis)

    def _check(self, axis: int) -> None:
        if axis < 0:
            raise InputError(f"{self} needs the dimension that its blocks lie along; give axis")

    def exponent(self, x: Tensor, axis: int) -> Tensor:
        """The least exponent of every block that clips nothing, int8."""
        largest = self._split(x, axis).abs().amax(axis + 1).double().nan_to_num(0.0)
        exponent = (torch.frexp(largest).exponent + 1 - self.bits).clamp(LEAST, MOST)
        beyond = torch.round(torch.ldexp(largest, -exponent)) > self.top
        return torch.where(largest > 0, exponent + beyond.int(), LEAST).clamp(LEAST, MOST).to(torch.int8)

    def _split(self, x: Tensor, axis: int) -> Tensor:
        """[..., blocks, block, ...], with zeros behind the end."""
        missing = -x.shape[axis] % self.block
        if missing:
            x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, missing])
        return x.reshape(*x.shape[:axis], -1, self.block, *x.shape[axis + 1 :])

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        return self.mantissas(x, parameters[0] if parameters else self.exponent(x, axis), axis).int()

    def mantissas(self, x: Tensor, exponent: Tensor, axis: int) -> Tensor:
        step = broadcast(exponent, x, axis, self.block).int()
        return torch.round(torch.ldexp(x, -step)).clamp(-self.top, self.top)

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        if not parameters:
            raise InputError("codes without exponents stand for no numbers; fit the format to the tensor first")
        return torch.ldexp(codes.float(), broadcast(parameters[0], codes, axis, self.block).int())

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        largest = self.top * 2.0 ** int(parameters[0].max()) if parameters else float("inf")
        return -largest, largest

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (parameters[0] if parameters else None, self.bits, self.block, axis)


def from_arguments(exponent: Tensor | None, bits: int, block: int, axis: int) -> Quantizer:
    return Quantizer(BlockFloat(bits, block), () if exponent is None else (exponent,), axis)

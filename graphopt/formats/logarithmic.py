"""Logarithmic numbers: zero, and powers of two with a sign, so that a product is a sum of codes.

    x^ = sign(code) * 2^((last + |code| - top) / steps)         |code| in 1 ... top = 2^(bits - 1) - 1;  code 0: zero
    |code| = clamp(round(steps * log2 |x|) - last + top, 1, top)

`steps` levels to an octave; the largest level is 2^(last / steps). Rounding is to the nearest logarithm, as hardware does it;
what is no larger than half of the least level becomes zero. With 8 bits and 16 steps, 8 octaves, this is HiSilicon's NNIE.

Parameters: `last`, int32, [] or [channels].
Paper:  Miyashita et al. 2016, "Convolutional Neural Networks using Logarithmic Data Representation".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.formats.protocol import Quantizer, broadcast, check_bits, rows
from graphopt.utils.errors import InputError
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    import torch
    from torch import Tensor

    from graphopt.formats.protocol import Method, Parameters
else:
    torch = lazy("torch")

OCTAVES = 128  # more than float32 has normal numbers around any value
SHRINK = 2  # octaves by which the search for the least squared error lowers the largest level, at most


@dataclass(frozen=True)
class LogFormat:
    """Attributes:
    bits: 2 to 16, the sign included.
    per_channel: every output channel has its own largest level.
    steps: levels to an octave (1: powers of two). None: 2^(bits - 4), at least 1, which makes 8 octaves of 4 bits and more.
    """

    block: ClassVar[int] = 0

    bits: int = 8
    per_channel: bool = False
    steps: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits, 2, 16)
        if self.steps is None:
            object.__setattr__(self, "steps", 1 << max(0, self.bits - 4))
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise InputError(f"steps, levels to an octave, must be a whole number of at least 1, got {self.steps!r}")
        if self.top > OCTAVES * self.steps:
            raise InputError(
                f"{self.top} levels with {self.steps} to an octave go beyond float32; take at least "
                f"{-(-self.top // OCTAVES)} steps"
            )

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def code_range(self) -> tuple[int, int]:
        return -self.top, self.top

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE_LOG

        return FAKE_QUANTIZE_LOG

    def __str__(self) -> str:
        return f"log{self.bits} {self.steps} to an octave {'per channel' if self.per_channel else 'per tensor'}"

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        axis = axis if self.per_channel else -1
        flat = rows(x.detach().double(), axis)
        largest = flat.abs().amax(1)
        last = self._nearest(largest)
        if method == "mse":
            weight = rows(importance.double(), axis) if importance is not None else torch.ones_like(flat)
            last = self._search(flat, weight, last)
        return Quantizer(self, (last if axis >= 0 else last[0],), axis)

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        last = self._nearest(torch.tensor([max(-low, high)], dtype=torch.float64))
        if method == "mse":
            last = self._search(seen[None], counts[None], last)
        return Quantizer(self, (last[0],))

    def _nearest(self, largest: Tensor) -> Tensor:
        last = torch.round(self.steps * torch.log2(largest))  # type: ignore[operator]
        return torch.where(largest > 0, last, 0.0).int()

    def _search(self, flat: Tensor, weight: Tensor, last: Tensor) -> Tensor:
        """The largest level of least squared error, sixteen to an octave tried."""
        assert self.steps is not None
        stride = max(1, self.steps // 16)
        best, found = torch.full(last.shape, torch.inf, dtype=torch.float64), last
        for shift in range(0, SHRINK * self.steps + 1, stride):
            codes = self.quantize(flat, (last - shift,), 0)
            error = ((self.dequantize(codes, (last - shift,), 0) - flat).square() * weight).sum(1)
            found, best = torch.where(error < best, last - shift, found), torch.minimum(error, best)
        return found

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        last = broadcast(parameters[0], x, axis).double()
        size = x.abs().double()
        code = (torch.round(self.steps * torch.log2(size)) - last + self.top).clamp(1, self.top)  # type: ignore[operator]
        least = torch.exp2((last + 1 - self.top) / self.steps).float().double()  # type: ignore[operator]
        return torch.where(size > least / 2, code * torch.sign(x), 0.0).int()

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        last = broadcast(parameters[0], codes, axis).double()
        level = torch.exp2((last + codes.abs() - self.top) / self.steps)  # type: ignore[operator]
        return (level * torch.sign(codes)).float()

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        largest = float(torch.exp2(parameters[0].max().double() / self.steps).float())  # type: ignore[operator]
        return -largest, largest

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (*parameters, self.bits, self.steps, axis)


def from_arguments(last: Tensor, bits: int, steps: int, axis: int) -> Quantizer:
    return Quantizer(LogFormat(bits, per_channel=axis >= 0, steps=steps), (last,), axis)

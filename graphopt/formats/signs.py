"""One and two bits: a sign times a scale, with zero between the signs or without.

    x^ = +above * scale    where x >= threshold
         -below * scale    where x <= -threshold, and not x >= threshold
         0                 between

    Binary     threshold 0, above = below = 1: two numbers, one bit; x^ = scale sign(x), with sign(0) = 1
               scale = mean |x|, the best there is                               XNOR-Net, Rastegari et al. 2016, eq. 6
    Ternary    above = below = 1: -scale, 0, scale
               `minmax`: threshold = 0.7 mean |x|, scale = mean of the |x| beyond it     TWN, Li and Liu 2016, eq. 5 and 6
               `mse`:    the threshold and scale of least (weighted) squared error
               two scales: above and below differ, whole multiples of a common scale, the larger of them 127, so that a product
               with codes of 8 bits is still one of integers                             TTQ, Zhu et al. 2017, section 3.1

Parameters: `scale` and `threshold`, float32, `below` and `above`, int32, each [] or [channels].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.formats.protocol import Quantizer, broadcast, rows
from graphopt.formats.uniform import SMALLEST_CHANNEL_SCALE
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:  # formats are plain data, which targets are described with: there without torch
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from graphopt.formats.protocol import Method, Parameters
else:
    torch = lazy("torch")

TWN_THRESHOLD = 0.7  # of mean |x|
LARGEST = 127  # of the two multiples of a scale


class _Signs:
    """What both formats do."""

    block: ClassVar[int] = 0
    per_channel: bool

    @property
    def operator(self) -> Any:
        from graphopt.formats.operators import FAKE_QUANTIZE_SIGNS

        return FAKE_QUANTIZE_SIGNS

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        axis = axis if self.per_channel else -1
        flat = rows(x.detach().double(), axis)
        weight = rows(importance.double(), axis) if importance is not None else torch.ones_like(flat)
        found = self.fit_rows(flat, weight, method)
        return Quantizer(self, found if axis >= 0 else tuple(p[0] for p in found), axis)  # type: ignore[arg-type]

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        found = self.fit_rows(seen[None].double(), counts[None].double(), method)
        return Quantizer(self, tuple(p[0] for p in found))  # type: ignore[arg-type]

    def fit_rows(self, flat: Tensor, weight: Tensor, method: Method) -> Parameters:
        raise NotImplementedError

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        scale, _, below, above = parameters
        return -float((scale * below).max()), float((scale * above).max())


@dataclass(frozen=True)
class Binary(_Signs):
    """Two numbers, -scale and scale, in one bit.

    Attributes:
        per_channel: every output channel has a scale of its own.
    """

    bits: ClassVar[int] = 1

    per_channel: bool = False

    @property
    def code_range(self) -> tuple[int, int]:
        return 0, 1

    def __str__(self) -> str:
        return f"binary {'per channel' if self.per_channel else 'per tensor'}"

    def fit_rows(self, flat: Tensor, weight: Tensor, method: Method) -> Parameters:
        """Of [channels, elements]; zero has the sign of one, so a channel of zeros has the least scale there is."""
        mean = (flat.abs() * weight).sum(1) / weight.sum(1).clamp(min=1e-300)
        scale = mean.clamp(min=SMALLEST_CHANNEL_SCALE).float()
        one = torch.ones_like(scale, dtype=torch.int32)
        return scale, torch.zeros_like(scale), one, one.clone()

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        """1 where x >= 0, else 0."""
        return (multiples(x, parameters, axis) > 0).int()

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        return (2 * codes - 1).float() * broadcast(parameters[0], codes, axis)

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (*parameters, self.bits, axis)


@dataclass(frozen=True)
class Ternary(_Signs):
    """Zero and one number on each side of it, in two bits.

    Attributes:
        per_channel: every output channel has numbers of its own.
        two_scales: the number below zero is not that above it, turned round.
    """

    bits: ClassVar[int] = 2

    per_channel: bool = False
    two_scales: bool = False

    @property
    def code_range(self) -> tuple[int, int]:
        return -1, 1

    def __str__(self) -> str:
        two = "two scales " if self.two_scales else ""
        return f"ternary {two}{'per channel' if self.per_channel else 'per tensor'}"

    def fit_rows(self, flat: Tensor, weight: Tensor, method: Method) -> Parameters:
        """Of [channels, elements]."""
        size = flat.abs()
        sides = [weight * (flat > 0), weight * (flat <= 0)] if self.two_scales else [weight]
        threshold = twn_threshold(size, weight) if method == "minmax" else least_error_threshold(size, sides)
        threshold = threshold.clamp(min=SMALLEST_CHANNEL_SCALE).float()
        beyond = weight * (size >= threshold[:, None])
        if not self.two_scales:
            scale = _mean(size, beyond).clamp(min=SMALLEST_CHANNEL_SCALE).float()
            one = torch.ones_like(scale, dtype=torch.int32)
            return scale, threshold, one, one.clone()
        below, above = (_mean(size, beyond * side) for side in (flat < 0, flat > 0))
        return two_scales(below, above, threshold)

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        """-1, 0 or 1."""
        return multiples(x, parameters, axis).sign().int()

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        scale, _, below, above = (broadcast(p, codes, axis) for p in parameters)
        return torch.where(codes > 0, above, codes.sign() * below).float() * scale

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        return (*parameters, self.bits, axis)


def from_arguments(scale: Tensor, threshold: Tensor, below: Tensor, above: Tensor, bits: int, axis: int) -> Quantizer:
    """What these arguments of `fake_quantize_signs` say."""
    alike = bool((below == 1).all() and (above == 1).all())
    format = Binary(axis >= 0) if bits == 1 else Ternary(axis >= 0, two_scales=not alike)
    return Quantizer(format, (scale, threshold, below, above), axis)


def multiples(x: Tensor, parameters: Parameters, axis: int) -> Tensor:
    """x in steps of its scale, whole numbers as int32: -below, 0 or above."""
    _, threshold, below, above = (broadcast(p, x, axis) for p in parameters)
    return torch.where(x >= threshold, above, torch.where(x <= -threshold, -below, 0)).int()


def two_scales(below: Tensor, above: Tensor, threshold: Tensor) -> Parameters:
    """The parameters of two numbers, rounded to multiples of a common scale: the larger is 127 of it, the other at least 1.

    The threshold is no larger than either that is not 0 (a side without elements), so that what is rounded stays where it is.
    """
    scale = torch.maximum(below, above).clamp(min=SMALLEST_CHANNEL_SCALE) / LARGEST
    low, high = ((end / scale).round().clamp(1, LARGEST).int() for end in (below, above))
    scale = scale.float()
    ends = [torch.where(end > 0, scale * code, torch.inf) for end, code in ((below, low), (above, high))]
    return scale, torch.minimum(threshold, torch.minimum(*ends)).float(), low, high


def twn_threshold(size: Tensor, weight: Tensor) -> Tensor:
    """0.7 times the mean of each row of |x|, [channels]."""
    return TWN_THRESHOLD * _mean(size, weight)


def least_error_threshold(size: Tensor, sides: Sequence[Tensor]) -> Tensor:
    """Of each row of |x| the threshold with the least weighted squared error, [channels].

    With the k largest beyond it and their mean as the scale, the error is sum w x^2 - (sum w x over them)^2 / sum w over them:
    the largest last term of all k is the best. The threshold lies between the least that is beyond it and the next.

    Args:
        sides: the weights of the elements that have one scale, for each scale; 0 for others.
    """
    ordered, place = size.sort(1, descending=True)
    masses = [side.gather(1, place) for side in sides]
    gain = sum((mass * ordered).cumsum(1).square() / mass.cumsum(1).clamp(min=1e-300) for mass in masses)
    last = torch.as_tensor(gain).argmax(1, keepdim=True)
    after = torch.nn.functional.pad(ordered, (0, 1)).gather(1, last + 1)
    return ((ordered.gather(1, last) + after) / 2)[:, 0]


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-300)

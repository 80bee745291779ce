"""What every number format can do: the protocol that passes, files and reports rely on.

A *format* says which numbers there are (`LogFormat(8)`); fitted to a tensor it becomes a *quantizer*, which knows the numbers of
this very tensor (a scale, a table, an exponent per block) and rounds to them:

    quantizer = format.fit(weight, axis=0, method="mse")
    codes     = quantizer.quantize(weight)          whole numbers of format.bits bits
    weight^   = quantizer.dequantize(codes)         equal to quantizer(weight), bit for bit
    weight^   = quantizer(weight)                   the operator of the format's family, with a gradient

There is one operator to each family of grids, whatever its bits; what it takes behind the tensor are the format's `arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from graphopt.utils.errors import InputError
from graphopt.utils.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

Method = Literal["minmax", "mse"]
Parameters: TypeAlias = "tuple[Tensor, ...]"


class NumberFormat(Protocol):
    """A set of numbers that values are rounded to. A frozen dataclass; `str` and `graphopt.formats.names` name it.

    Attributes:
        bits: of a code, in storage.
        per_channel: every channel has its own parameters, else the tensor has one set.
        block: elements along a dimension that share parameters; 0: no blocks.
        code_range: the least and the greatest code; where the least is negative, storage is two's complement.
    """

    @property
    def bits(self) -> int: ...
    @property
    def per_channel(self) -> bool: ...
    @property
    def block(self) -> int: ...
    @property
    def code_range(self) -> tuple[int, int]: ...
    @property
    def operator(self) -> Any:
        """The operator of its family: `operator(x, *arguments)`."""

    def fit(self, x: Tensor, axis: int = -1, method: Method = "minmax", importance: Tensor | None = None) -> Quantizer:
        """The quantizer of a tensor that is at hand.

        Args:
            x: float tensor of any shape.
            axis: the dimension that channels, or blocks, lie along; -1 where there are neither.
            method: `minmax` covers every element; `mse` has the least (weighted) squared error.
            importance: weights of the squared errors, of x's shape.
        """

    def fit_values(self, low: float, high: float, seen: Tensor, counts: Tensor, axis: int, method: Method) -> Quantizer:
        """The quantizer of values that come later, of which a distribution is known.

        Args:
            low, high: the range to cover with `minmax`.
            seen, counts: values and how often they occurred, float64 [n].
            axis: the dimension that blocks lie along.
        """

    def quantize(self, x: Tensor, parameters: Parameters, axis: int) -> Tensor:
        """Codes, int32, of x's shape."""

    def dequantize(self, codes: Tensor, parameters: Parameters, axis: int) -> Tensor:
        """What codes stand for, float32."""

    def ends(self, parameters: Parameters) -> tuple[float, float]:
        """The outermost numbers; infinities where every tensor has its own."""

    def arguments(self, parameters: Parameters, axis: int) -> tuple[Any, ...]:
        """What the operator takes behind x; tensors among them become constants of a graph."""


@dataclass(frozen=True, eq=False)  # tensors have no equality that is a bool
class Quantizer:
    """A number format fitted to a tensor.

    Attributes:
        format: which numbers there are in general.
        parameters: what makes them those of this tensor; what they are, the format's file says.
        axis: the dimension they run along, -1 for one set.
    """

    format: NumberFormat
    parameters: Parameters = ()
    axis: int = -1

    def quantize(self, x: Tensor) -> Tensor:
        """Codes, int32, of x's shape."""
        return self.format.quantize(x, self.parameters, self.axis)

    def dequantize(self, codes: Tensor) -> Tensor:
        """What codes stand for, float32."""
        return self.format.dequantize(codes, self.parameters, self.axis)

    def __call__(self, x: Tensor) -> Tensor:
        """x rounded, in its own type, with a straight-through gradient."""
        rounded: Tensor = self.format.operator(x, *self.arguments)
        return rounded

    def clipped(self, x: Tensor) -> Tensor:
        """Which elements lie beyond the ends of their grid: where the straight-through gradient stops, bool."""
        with torch.enable_grad():
            value = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(value).sum(), value)
        return gradient == 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.format.arguments(self.parameters, self.axis)

    @property
    def ends(self) -> tuple[float, float]:
        """The outermost numbers of any channel or block."""
        return self.format.ends(self.parameters)

    @property
    def sets(self) -> int:
        """How many sets of parameters there are: one, or one per channel."""
        return len(self.parameters[0]) if self.format.per_channel and self.parameters[0].dim() else 1


def rows(x: Tensor, axis: int) -> Tensor:
    """[channels, elements], one row where there are no channels."""
    return x.reshape(1, -1) if axis < 0 else x.movedim(axis, 0).flatten(1)


def from_rows(flat: Tensor, x: Tensor, axis: int) -> Tensor:
    """The way back to the shape of x."""
    if axis < 0:
        return flat.reshape(x.shape)
    return flat.reshape(x.movedim(axis, 0).shape).movedim(0, axis)


def broadcast(parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A parameter, one or along `axis` (with `block` elements to each), as it meets x."""
    if parameter.dim() == 0 or axis < 0:
        return parameter
    if block:
        return parameter.index_select(axis, blocks_of(x.shape[axis], block).to(parameter.device))
    return parameter.reshape([-1 if d == axis else 1 for d in range(x.dim())])


def blocks_of(length: int, block: int) -> Tensor:
    """The block that each of `length` elements lies in."""
    return torch.arange(length) // block


def check_bits(bits: Any, least: int, most: int) -> None:
    """Raise `ValueError` where the bits of a format are out of its range."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not least <= bits <= most:
        raise InputError(f"bits must be a whole number from {least} to {most}, got {bits!r}")

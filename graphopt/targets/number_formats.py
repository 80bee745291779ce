"""Which number formats the hardware computes in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from graphopt.formats import FloatFormat, Format, NumberFormat
from graphopt.utils.errors import InputError

Kind = Literal["weights", "activations"]
WIDTHS = tuple(range(2, 9))  # bits of mixed precision where nothing else is said


@dataclass(frozen=True)
class Formats:
    """Number formats of weights, activations, biases, and of what is not quantized.

    Attributes:
        weights: the number format of the weights of quantized layers.
        activations: the number format of the inputs and outputs of quantized layers and operators.
        more_weights: other number formats of weights that the hardware takes, for the whole network or single layers.
        more_activations: other number formats of activations that it takes.
        weight_bits: the bit widths that mixed precision may choose for the weights of a layer.
        activation_bits: the bit widths that mixed precision may choose for the output of a layer.
        rest: the float format of operators that are not quantized; None: float32.
        float_bias: biases of quantized layers stay float32; otherwise they are int32, with the scale of the input times that of
            the weight.

    Raises:
        InputError: something that is no number format, activations with a scale per channel, or bits that no uniform format has.
    """

    weights: NumberFormat
    activations: NumberFormat
    more_weights: tuple[NumberFormat, ...] = ()
    more_activations: tuple[NumberFormat, ...] = ()
    weight_bits: tuple[int, ...] = WIDTHS
    activation_bits: tuple[int, ...] = WIDTHS
    rest: FloatFormat | None = None
    float_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("more_weights", "more_activations", "weight_bits", "activation_bits"):
            if not isinstance(getattr(self, name), tuple):
                raise InputError(f"{name} must be a tuple, got {getattr(self, name)!r}")
        for format in self.accepted("weights"):
            _check_format("weights", format)
        for format in self.accepted("activations"):
            _check_format("activations", format)
            if format.per_channel:
                raise InputError(f"activations have one scale for the whole tensor, but {format} has one per channel")
        if self.rest is not None and not isinstance(self.rest, FloatFormat):
            raise InputError(f"rest is a float format, such as FLOAT16, or None for float32, got {self.rest!r}")
        _check_widths("weight_bits", self.weight_bits)
        _check_widths("activation_bits", self.activation_bits)

    def accepted(self, kind: Kind) -> tuple[NumberFormat, ...]:
        """Every format that the hardware takes for weights or activations, the default first."""
        if kind == "weights":
            return (self.weights, *self.more_weights)
        return (self.activations, *self.more_activations)

    def takes(self, format: NumberFormat, kind: Kind) -> bool:
        """Whether a format is an accepted one, or an accepted one with fewer bits (stored in the wider integers)."""
        return any(format == one or _narrower(format, one) for one in self.accepted(kind))

    @property
    def codes(self) -> Format:
        """The format of activations, which must be uniform.

        Raises:
            InputError: it is not.
        """
        if not isinstance(self.activations, Format):
            raise InputError(f"activations are {self.activations}, which ONNX has no codes for")
        return self.activations


def _check_format(name: str, format: Any) -> None:
    """Raise `InputError` unless this is a number format, rather than a class or a name of one."""
    if isinstance(format, type) or not callable(getattr(format, "fit", None)):
        raise InputError(f"{name} must be in a number format, such as Format(8), got {format!r}")


def _check_widths(name: str, widths: tuple[int, ...]) -> None:
    """Raise `InputError` unless there is a uniform format of each of these bits."""
    for bits in widths:
        try:
            Format(bits)
        except ValueError as error:
            raise InputError(f"{name}={widths!r}: {error}") from error
    if not widths:
        raise InputError(f"{name} is empty; name at least the bits of the target's own format")


def _narrower(format: Any, other: Any) -> bool:
    """Whether a format is another one with fewer bits."""
    if not isinstance(format, Format) or not isinstance(other, Format):
        return False
    return format.bits < other.bits and replace(format, bits=other.bits) == other

"""What a report says of a network call by call: bits, arithmetic, work; time and damage where they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["integer", "float", "float16", "weights", ""]
WORDS = {
    "integer": "integer",
    "float": "float",
    "float16": "float16",
    "weights": "float, weights of few bits",
    "": "moves",
}


@dataclass(frozen=True)
class Call:
    """One layer or other call of a network, with the activations that are fused into it, or an input.

    Attributes:
        name: by which options know it: the module's path.
        operator: `conv`, `linear`, `add`, `input`, ...; fused activations behind it, as in `conv + relu`.
        value: what profiles and files call its result.
        reads: the numbers of the calls that it reads, in the report's list.
        shape: of its result; None where a size is free.
        weight_bits, activation_bits: of its codes; None where weights or result are float.
        arithmetic: what it computes in; `weights`: float values, weights of few bits. Empty: it only moves values.
        reason: why it computes in float.
        macs: multiply-accumulates on the example.
        milliseconds: of its kernels, where the artifact was profiled.
        sqnr_db: at the network's output with this layer alone quantized, in decibels, where it was analyzed.
    """

    name: str
    operator: str
    value: str = ""
    reads: Sequence[int] = ()
    shape: Sequence[int | None] = ()
    weight_bits: int | None = None
    activation_bits: int | None = None
    arithmetic: Arithmetic = ""
    reason: str = ""
    macs: int = 0
    milliseconds: float | None = None
    sqnr_db: float | None = None

    @property
    def bits(self) -> str:
        """Of weights and result, as `4 / 8`; empty where both are float."""
        if self.weight_bits is None and self.activation_bits is None:
            return ""
        weights = "-" if self.weight_bits is None else str(self.weight_bits)
        return f"{weights} / {'float' if self.activation_bits is None else self.activation_bits}"


@dataclass(frozen=True)
class Distribution:
    """The values of a quantized activation or weight, and the grid they are rounded to.

    Attributes:
        name: of the layer that produces the activation, or of the weight. kind: `activation` or `weight`.
        low, high: the ends of the grid, the outermost ones where there are several; infinite where blocks find their own.
        start, step: of the bins: bin i holds values from start + i step on.
        counts: elements per bin.
        clipped: the share of elements beyond the grid (0 to 1).
        used, codes: how many codes occur, and how many there are.
    """

    name: str
    kind: str
    bits: int
    low: float
    high: float
    start: float
    step: float
    counts: Sequence[float]
    clipped: float
    used: int
    codes: int
    sqnr_db: float

"""What a lowered model really computes in integer, as its backend reads it back."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.artifacts.report import FloatOperator


@dataclass
class Audit:
    """Attributes:
    integer: sites of the layers computed in integer.
    weight_only: sites of the layers whose weights alone are of few bits.
    floating: operators that compute in float.
    integer_macs, total_macs: multiply-accumulates of convolutions and linear layers.
    float16_macs: those of float layers in float16, which count as neither.
    weight_only_macs: those of `weight_only`, by the bits of the weights; they count as neither integer nor float.
    operators: how often each operator type occurs.
    few_bits: sites of the layers with weights of one bit or two -> how the library stores them, and why where in 8.
    saturating: sites of the layers whose sums can saturate on this machine, an x86-64 CPU without VNNI.
    """

    integer: list[str] = field(default_factory=list)
    weight_only: list[str] = field(default_factory=list)
    floating: list[FloatOperator] = field(default_factory=list)
    integer_macs: int = 0
    float16_macs: int = 0
    weight_only_macs: dict[int, int] = field(default_factory=dict)
    total_macs: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    few_bits: dict[str, str] = field(default_factory=dict)
    saturating: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of multiply-accumulates of convolutions and linear layers computed in integer, 0 to 1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0

    @property
    def float16_share(self) -> float:
        """The share computed on float16 values, 0 to 1."""
        return self.float16_macs / self.total_macs if self.total_macs else 0.0

    @property
    def weight_only_shares(self) -> dict[int, float]:
        """The shares of multiply-accumulates with weights of few bits and float values, 0 to 1, by bits."""
        return {bits: macs / self.total_macs for bits, macs in self.weight_only_macs.items() if self.total_macs}

"""Energy of arithmetic and memory accesses by a table: a model for comparing networks, not a measurement of any device."""

from __future__ import annotations

from dataclasses import dataclass, fields

from graphopt.utils.errors import InputError

BITS = 64  # of one access


@dataclass(frozen=True)
class Energy:
    """Picojoules of one operation, or of one access of 64 bits.

    Attributes:
        int_add8, int_add32, int_mul8, int_mul32: integer arithmetic.
        float_add16, float_add32, float_mul16, float_mul32: floating-point arithmetic.
        sram: an access to 32 KB next to the arithmetic. dram: to memory outside the chip, at the least.
        source: where the numbers are from.

    Raises:
        InputError: a number that is not over 0.
    """

    int_add8: float = 0.03
    int_add32: float = 0.1
    int_mul8: float = 0.2
    int_mul32: float = 3.1
    float_add16: float = 0.4
    float_add32: float = 0.9
    float_mul16: float = 1.1
    float_mul32: float = 3.7
    sram: float = 20.0
    dram: float = 1300.0
    source: str = (
        'Horowitz 2014, "Computing\'s Energy Problem (and what we can do about it)", ISSCC, figure 1.1.9: 45 nm, 0.9 V'
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            number = getattr(self, each.name)
            if each.name != "source" and not number > 0:
                raise InputError(f"the energy {each.name} must be a number of picojoules over 0, got {number!r}")

    def multiply_add(self, bits: int, *, floating: bool = False) -> float:
        """Of one multiply-accumulate: integers of so many bits (at least 8), added in 32; or floats of 16 or 32."""
        if floating:
            return self.float_mul16 + self.float_add16 if bits <= 16 else self.float_mul32 + self.float_add32
        return (self.int_mul8 if bits <= 8 else self.int_mul32 * (bits / 32) ** 2) + self.int_add32

    def near(self, bits: float) -> float:
        """To read or write so many bits near the arithmetic."""
        return self.sram * bits / BITS

    def far(self, bits: float) -> float:
        """To read so many bits from outside the chip."""
        return self.dram * bits / BITS

"""What makes a network: passes as a text, and bits by layer. Plain data, which another process or another day can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.compiler.pipeline import pipeline
from graphopt.compiler.recipes import integer, prepare
from graphopt.data.calibration import Calibration
from graphopt.formats import Format, with_bits
from graphopt.ir.passes import Pass
from graphopt.passes.quantization import LayerFormat
from graphopt.targets import Target
from graphopt.utils.errors import InputError
from graphopt.utils.pass_text import pass_text

LEFT_OUT = ("data", "checkpoint")


@dataclass(frozen=True)
class Recipe:
    """How a network is made from the original.

    Attributes:
        passes: that make it smaller, as `graphopt.optimize(passes=...)` reads them, without those that quantize; empty: none.
        bits: layer-name pattern -> bits of the weights, None for float; other layers have the target's format.
    """

    passes: str = ""
    bits: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, passes: Sequence[Pass], formats: Mapping[str, LayerFormat | None]) -> Recipe:
        """Of passes whose options are plain values, and formats that change the bits of weights alone."""
        bits = {name: None if f is None else getattr(f.weights, "bits", None) for name, f in formats.items()}
        return cls(", ".join(map(_text, passes)), bits)

    def __call__(self, target: Target, data: Calibration) -> list[Pass]:
        """All passes, those that quantize included; a value of `graphopt.optimize(passes=...)`."""
        smaller = pipeline(self.passes)(target, data) if self.passes else []
        return [*smaller, *prepare(target), *integer(target, data, formats=self.formats(target))]

    def formats(self, target: Target) -> dict[str, LayerFormat | None]:
        own = target.formats.weights
        if self.bits and not isinstance(own, Format):
            raise InputError(f"the recipe chooses bits of weights, but those of {target.name!r} are {own}")
        return {name: None if b is None else LayerFormat(weights=with_bits(own, b)) for name, b in self.bits.items()}

    def to_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "bits": dict(self.bits)}


def _text(step: Pass) -> str:
    """With the options that are not as they are by default; data are filled in again where the text is read."""
    options = {}
    for each in dataclasses.fields(step):  # type: ignore[arg-type]
        default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
        given = getattr(step, each.name)
        if each.init and each.name not in LEFT_OUT and given != default:
            options[each.name] = dict(given) if isinstance(given, Mapping) else given
    return pass_text(type(step).__name__, options)

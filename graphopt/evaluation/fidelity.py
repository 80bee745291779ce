"""How close a result comes to the float original: each output, and each channel of it, over many samples.

    SQNR = 10 log10(sum r^2 / sum (r - v)^2)        r: the original's answer, v: the result's; sums over samples and positions

Channels lie along dimension 1 of outputs of two and more dimensions. A channel can be lost in an output that as a whole is not:
scores of 0 to 1 beside boxes in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LOW = 10.0  # dB under which an answer is far from the original's
APART = 10.0  # dB by which a channel has to be worse than its output for it to count as drowned
SHOWN = 5  # channels named in a warning


class Fidelity:
    """Learns from one batch of answers after another; only sums are kept."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.power: list[Tensor] = []
        self.noise: list[Tensor] = []

    def update(self, reference: Sequence[Tensor], answers: Sequence[Tensor]) -> None:
        power = [_sums(r.double()) for r in reference]
        noise = [_sums(r.double() - v.double()) for r, v in zip(reference, answers, strict=True)]
        fits = self.power and all(a.shape == b.shape for a, b in zip(self.power, power, strict=True))
        if not self.power or fits:
            self.power = [a + b for a, b in zip(self.power or [torch.zeros(())] * len(power), power, strict=True)]
            self.noise = [a + b for a, b in zip(self.noise or [torch.zeros(())] * len(noise), noise, strict=True)]

    @property
    def outputs(self) -> dict[str, float]:
        """SQNR of each output in dB."""
        sums = zip(self.names, self.power, self.noise, strict=True)
        return {name: decibels(float(power.sum()), float(noise.sum())) for name, power, noise in sums}

    def channels(self, name: str) -> list[float]:
        """SQNR of each channel of an output in dB; infinite for one that is zero throughout in both."""
        number = self.names.index(name)
        pairs = zip(self.power[number].tolist(), self.noise[number].tolist(), strict=True)
        return [decibels(power, noise) for power, noise in pairs]

    def drowned(self) -> list[str]:
        """What to say of channels that are lost while their output is not."""
        said = []
        for name, whole in self.outputs.items():
            lost = [(c, db) for c, db in enumerate(self.channels(name)) if db < LOW and whole - db > APART]
            if lost:
                shown = ", ".join(f"{c} ({db:.1f} dB)" for c, db in lost[:SHOWN]) + ", ..." * (len(lost) > SHOWN)
                said.append(
                    f"output {name!r} has {whole:.1f} dB, but {len(lost)} of its channels drown in the others: {shown}; return "
                    "values of different size as separate outputs"
                )
        return said


def decibels(power: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power > 0 and math.isfinite(noise) else -math.inf


def _sums(values: Tensor) -> Tensor:
    """sum x^2 of each channel, [channels]."""
    if values.dim() < 2:
        return values.square().sum().reshape(1)
    return values.square().transpose(0, 1).flatten(1).sum(1)

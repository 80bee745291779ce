"""How a graph is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.training.devices import device_of
from graphopt.training.forward import lower_precision
from graphopt.training.parameters import RATES, Make, Schedule, schedule_of
from graphopt.utils.errors import InputError


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        epochs: over the data.
        optimizer: `adamw`, `sgd`, or a function of the groups of `parameters.groups`.
        rate: of weights; None: 1e-3 for adamw, 0.01 for sgd.
        scale_rate: of the scales of quantizers, as a share of it.
        decay: of weights, per step and rate.
        schedule: `cosine`, `linear`, `constant`, or a factor by progress; warmup: the share in which rates rise.
        clip: the largest norm of all gradients together; None: as they are.
        accumulate: batches for one step.
        average: the decay of a moving average of the weights, which is evaluated and kept in place of them; None: no average.
        batch_size: where the data are tensors.
        label_smoothing: of losses that know it.
        seed: of the order of the data, dropout, and whatever else is drawn.
        save_every: seconds between checkpoints within an epoch.
        device: where torch trains it, such as `cuda`; None: where the graph is. Checkpoints go on on any device.
        precision: `float32`; `bfloat16` for layers, where torch's autocast knows how; `auto`: that where the processor multiplies
            it.
    """

    epochs: int = 1
    optimizer: str | Make = "adamw"
    rate: float | None = None
    scale_rate: float = 1.0
    decay: float = 1e-4
    schedule: str | Schedule = "cosine"
    warmup: float = 0.05
    clip: float | None = None
    accumulate: int = 1
    average: float | None = None
    batch_size: int = 64
    label_smoothing: float = 0.0
    seed: int = 0
    save_every: float = 60.0
    device: str | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise InputError(f"rate must be over 0, got {self.rate}")
        if self.device is not None:
            device_of(self.device)
        schedule_of(self.schedule, self.warmup)
        lower_precision(self.precision)

    @property
    def peak(self) -> float:
        """The rate of weights at its highest."""
        if self.rate is not None:
            return self.rate
        return RATES.get(self.optimizer, RATES["adamw"]) if isinstance(self.optimizer, str) else RATES["adamw"]

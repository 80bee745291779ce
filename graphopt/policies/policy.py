"""`Policy`: which confidence, with which temperatures, and from which threshold on a stage's answer is the answer.

A sample stops at the first stage whose confidence is at least its threshold; at a threshold of None nothing stops. What reaches
the last stage stops there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.policies import learned
from graphopt.policies.confidence import (
    NAMES,
    agreement,
    check_classes,
    entropy,
    margin,
    probabilities,
    softmax,
)
from graphopt.policies.elementary import EXACT, Functions
from graphopt.utils.errors import InputError, alternatives

Array = np.ndarray[Any, Any]
Confidence = str | Callable[[list[Array]], Any]
BY_NAME = {"softmax": softmax, "margin": margin}


@dataclass(frozen=True)
class Policy:
    """See the head of this file.

    Attributes:
        thresholds: of each stage but the last, from 0 to 1; None: never stops.
        confidence: `softmax`, `entropy`, `margin`, `agreement` or `learned` (`confidence.py`, `learned.py`); or a function of a
            stage's outputs, a list of arrays, that gives a number from 0 to 1 for each sample.
        temperatures: that logits are divided by, of each stage; empty: 1.
        weights: of `learned`, of each stage but the last.

    Raises:
        InputError: an unknown confidence, a threshold outside of [0, 1], a temperature that is not over 0, or numbers that do not
            go together.
    """

    thresholds: tuple[float | None, ...]
    confidence: Confidence = "softmax"
    temperatures: tuple[float, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.confidence) and self.confidence not in NAMES:
            known = alternatives(str(self.confidence), NAMES, "confidences")
            raise InputError(f"unknown confidence {self.confidence!r}; {known}, or a function")
        for stage, threshold in enumerate(self.thresholds):
            if threshold is not None and not 0 <= threshold <= 1:
                raise InputError(
                    f"the threshold of stage {stage} is {threshold}; confidence is from 0 to 1, None never stops"
                )
        if self.temperatures and len(self.temperatures) != self.stages:
            raise InputError(f"{len(self.temperatures)} temperatures for {self.stages} stages; give one for each")
        if not all(math.isfinite(t) and t > 0 for t in self.temperatures):
            raise InputError(f"temperatures must be over 0, got {', '.join(map(str, self.temperatures))}")
        if self.confidence == "learned" and len(self.weights) != len(self.thresholds):
            raise InputError("confidence='learned' has weights of its own, which Cascade.fit finds from labels")

    @property
    def stages(self) -> int:
        """How many stages it is for."""
        return len(self.thresholds) + 1

    def at(self, thresholds: Sequence[float | None]) -> Policy:
        """The same with other thresholds."""
        return replace(self, thresholds=tuple(thresholds))

    def of(self, stage: int, outputs: list[Array], streak: Array, using: Functions = EXACT) -> Array:
        """How sure the answer of a stage is, float64 [N].

        Args:
            outputs: of the stage, without what it hands on. streak: as `agreement` takes it.
            using: other functions than those whose bits are the same on every machine.

        Raises:
            InputError: the outputs are no classes; or a function gave something else than numbers from 0 to 1, one a sample.
        """
        if callable(self.confidence):
            return _checked(self.confidence(outputs), len(outputs[0]))
        check_classes(outputs, stage)
        if self.confidence == "agreement":
            return agreement(streak, stage)
        p = probabilities(outputs[0], self.temperatures[stage] if self.temperatures else 1.0, using)
        if self.confidence == "learned":
            return learned.confidence(learned.features(p, streak, stage, using), self.weights[stage], using)
        return entropy(p, using) if self.confidence == "entropy" else BY_NAME[str(self.confidence)](p)

    @property
    def of_probabilities(self) -> bool:
        """Whether it is computed from probabilities."""
        return not callable(self.confidence) and self.confidence != "agreement"

    @property
    def counts_agreement(self) -> bool:
        """Whether it wants to know how many stages agree."""
        return self.confidence in ("agreement", "learned")

    def to_dict(self) -> dict[str, Any]:
        """As plain data.

        Raises:
            InputError: its confidence is a function, which no file holds.
        """
        if callable(self.confidence):
            raise InputError(
                "confidence is a function of your program, which no file holds; save the stages, and put them together again "
                "with graphopt.Cascade(stages, confidence=...)"
            )
        return {
            "thresholds": list(self.thresholds),
            "confidence": self.confidence,
            "temperatures": list(self.temperatures),
            "weights": [list(each) for each in self.weights],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """What `to_dict` gave.

        Raises:
            InputError, TypeError, KeyError: it is something else.
        """
        thresholds = tuple(None if t is None else float(t) for t in data["thresholds"])
        weights = tuple(tuple(float(w) for w in each) for each in data["weights"])
        if not isinstance(data["confidence"], str) or any(len(each) != 5 for each in weights):
            raise InputError(f"the policy of a file has a confidence by name, got {data['confidence']!r}")
        return cls(thresholds, data["confidence"], tuple(float(t) for t in data["temperatures"]), weights)


def array_of(given: Any) -> Array:
    """A tensor, array or list as an array."""
    return np.asarray(given.detach().cpu().numpy() if hasattr(given, "detach") else given)


def _checked(given: Any, count: int) -> Array:
    """What a function gave, as float64 [N]."""
    found = array_of(given).astype(np.float64)
    if found.shape != (count,) or not bool(((found >= 0) & (found <= 1)).all()):
        shown = f"{list(found.shape)}" if found.shape != (count,) else f"values from {found.min():g} to {found.max():g}"
        raise InputError(f"confidence must give a number from 0 to 1 for each of {count} samples, got {shown}")
    return found

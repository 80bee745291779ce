"""Times of a few whole networks correct the sum of what their parts take alone.

In a network a kernel finds caches full, a runtime changes layouts between kernels, and each call costs something by itself. All
of this is learned as deviations from the parts' times p, by Bayesian linear regression (Bishop 2006, "Pattern Recognition and
Machine Learning", section 3.3), from networks that were measured whole:

    time = sum over parts of  s p (1 + a + a_kind + a_part) + n_kind + o_part,options  +  sum over ranks and blocks taken of c
    s: so that the network as it is agrees; a, n, o, c: Gaussian around 0

The corrected time is a sum of terms over the same choices again, so that any solver takes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from graphopt.searching import Assignment, Choice, Term

# Standard deviations: of shares of a part's time (all parts, of one kind, one part, one part with some options) ...
ALL, KIND, PART, OPTIONS = 0.5, 0.3, 0.1, 0.2
CALL = 0.05  # ... of the mean part's time, for each part that is there ...
CHOICE = 0.02  # ... and of the whole time, for a chain or a block that is gone.
NOISE = 0.015  # of the whole time: of one measurement, and of what nothing above can say
RARE = ("rank", "block", "format")  # kinds of choices of which a drawn network has few
FEW = 0.2  # of those
AROUND = 0.35  # of the options: what widths of one drawn network differ by
Key = tuple[object, ...]
Features = dict[Key, float]


@dataclass(frozen=True)
class PartTerm(Term):
    """The milliseconds of a part; parts of one kind are run by the same kernels."""

    kind: str = ""


@dataclass(frozen=True)
class Agreement:
    """How predicted and measured times of networks agree, each predicted from the others.

    Attributes:
        networks: how many. r2: the share of the variance that is predicted. error: the median relative error.
    """

    networks: int
    r2: float
    error: float

    def __str__(self) -> str:
        return f"R^2 {self.r2:.2f}, median error {self.error:.1%} over {self.networks} networks"


class Correction:
    """Corrects terms by the times of whole networks, the first of which is the network as it is.

    Args:
        choices: that the terms are over.
        parts: milliseconds of every part.
    """

    def __init__(self, choices: Sequence[Choice], parts: Sequence[PartTerm]) -> None:
        self.choices = choices
        self.parts = [PartTerm(part.scope, cache(part.of), part.kind) for part in parts]
        self.taken = [n for n, choice in enumerate(choices) if choice.kind in RARE]
        self.seen: dict[Assignment, float] = {}

    def see(self, assignment: Assignment, ms: float) -> None:
        """A network that was measured whole."""
        self.seen[assignment] = ms

    def raw(self, assignment: Assignment) -> float:
        """The sum of what the parts take alone."""
        return sum(part.of(_chosen(part, assignment)) for part in self.parts)

    def terms(self) -> list[Term]:
        """Milliseconds, corrected by what was seen so far."""
        scale, weights = self._scale(), self._weights()

        def corrected(number: int, part: PartTerm) -> Callable[[Assignment], float]:
            return lambda options: scale * part.of(options) + _dot(self._of_part(number, options), weights)

        def choice(number: int) -> Callable[[Assignment], float]:
            return lambda options: _dot(self._of_choice(number, options[0]), weights)

        terms = [Term(part.scope, cache(corrected(n, part))) for n, part in enumerate(self.parts)]
        return terms + [Term((n,), choice(n)) for n in self.taken]

    def agreement(self) -> Agreement | None:
        """Of every network but the first, predicted from all others; None of fewer than four."""
        if len(self.seen) < 4:
            return None
        covariance, rest, ms = self._evidence()
        inverse = np.linalg.inv(covariance)
        left_out = (inverse @ rest) / np.diag(inverse)  # measured less predicted, each from the others
        variance = ((ms[1:] - ms[1:].mean()) ** 2).sum()
        r2 = 1 - float((left_out[1:] ** 2).sum() / variance) if variance else 0.0
        return Agreement(len(ms) - 1, r2, float(np.median(np.abs(left_out[1:] / ms[1:]))))

    # ---- The regression ---------------------------------------------------------------------------------------------

    @property
    def _first(self) -> tuple[Assignment, float]:
        return next(iter(self.seen.items()))

    def _scale(self) -> float:
        first, ms = self._first
        return ms / self.raw(first)

    def _evidence(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Covariance of what was seen, what of it the parts alone do not say, and the times."""
        features, ms = self._matrix()[0], np.array(list(self.seen.values()))
        rest = ms - self._scale() * np.array([self.raw(each) for each in self.seen])
        noise = (NOISE * self._first[1]) ** 2
        return features @ features.T + noise * np.eye(len(ms)), rest, ms

    def _matrix(self) -> tuple[npt.NDArray[np.float64], list[Key]]:
        rows = [self._features(each) for each in self.seen]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return np.array([[row.get(key, 0.0) for key in keys] for row in rows]).reshape(len(rows), len(keys)), keys

    def _weights(self) -> dict[Key, float]:
        features, keys = self._matrix()
        covariance, rest, _ = self._evidence()
        return dict(zip(keys, (features.T @ np.linalg.solve(covariance, rest)).tolist(), strict=True))

    def _features(self, assignment: Assignment) -> Features:
        found: Features = {}
        for number, part in enumerate(self.parts):
            for key, value in self._of_part(number, _chosen(part, assignment)).items():
                found[key] = found.get(key, 0.0) + value
        for number in self.taken:
            found.update(self._of_choice(number, assignment[number]))
        return found

    def _of_part(self, number: int, options: Assignment) -> Features:
        part, scale = self.parts[number], self._scale()
        ms = scale * part.of(options)
        found: Features = {("all",): ALL * ms, ("kind", part.kind): KIND * ms, ("part", number): PART * ms}
        if ms:
            found["call", part.kind] = CALL * self._first[1] / len(self.parts)
            found["options", number, options] = OPTIONS * scale * part.of(_chosen(part, self._first[0]))
        return found

    def _of_choice(self, number: int, option: int) -> Features:
        return {("choice", number): CHOICE * self._first[1]} if option else {}


def drawn(choices: Sequence[Choice], seed: int = 0) -> Iterator[Assignment]:
    """Networks to measure: as it is, with the fewest channels, then at random between, each about as narrow throughout."""
    yield (0,) * len(choices)
    yield tuple(0 if choice.kind in RARE else len(choice.options) - 1 for choice in choices)
    rng = random.Random(seed)
    while True:
        level = rng.random()
        yield tuple(_drawn(choice, level, rng) for choice in choices)


def _drawn(choice: Choice, level: float, rng: random.Random) -> int:
    last = len(choice.options) - 1
    if choice.kind in RARE:
        return rng.randint(0, last) if rng.random() < FEW else 0
    return min(last, max(0, round(last * (level + rng.uniform(-AROUND, AROUND)))))


def _chosen(part: Term, assignment: Assignment) -> Assignment:
    return tuple(assignment[choice] for choice in part.scope)


def _dot(features: Mapping[Key, float], weights: Mapping[Key, float]) -> float:
    return sum(value * weights.get(key, 0.0) for key, value in features.items())

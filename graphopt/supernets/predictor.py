"""Scores of networks predicted from those of others: ridge regression on which option each choice has.

    score ~ b + sum over choices of  w[choice, option]          |w|^2 weighed by leave-one-out error

Fitted to the networks that were evaluated, it ranks thousands that were not (Cai et al. 2020, "Once-for-All", section 3.4, with
a network in its place; Wen et al. 2020, "Neural Predictor for Neural Architecture Search").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from graphopt.searching import Assignment, Choice

PENALTIES = tuple(10.0**power for power in range(-3, 4))
Vector = npt.NDArray[np.float64]


class Predictor:
    """Fitted when it is made.

    Args:
        choices: of the problem.
        scores: of some assignments, two at least.

    Attributes:
        error: the root mean square of what each score is mispredicted by when it is left out.
    """

    def __init__(self, choices: Sequence[Choice], scores: Mapping[Assignment, float]) -> None:
        self.sizes = [len(choice.options) for choice in choices]
        rows = np.stack([self._row(options) for options in scores])
        target = np.array(list(scores.values()), dtype=np.float64)
        self.middle, self.level = rows.mean(0), float(target.mean())
        centred, wanted = rows - self.middle, target - self.level
        u, s, vt = np.linalg.svd(centred, full_matrices=False)
        fits = [_fit(u, s, wanted, penalty) for penalty in PENALTIES]
        best = int(np.argmin([error for error, _ in fits]))
        self.error, shrunk = fits[best]
        self.slopes = vt.T @ (shrunk * (u.T @ wanted))

    def __call__(self, options: Assignment) -> float:
        return self.level + float((self._row(options) - self.middle) @ self.slopes)

    def _row(self, options: Assignment) -> Vector:
        return np.concatenate([np.eye(size)[option] for size, option in zip(self.sizes, options, strict=True)])


def _fit(u: Vector, s: Vector, wanted: Vector, penalty: float) -> tuple[float, Vector]:
    """Leave-one-out error of a penalty, and what singular values become: s / (s^2 + penalty)."""
    shares = s**2 / (s**2 + penalty)
    leverage = (u**2 * shares).sum(1) + 1 / len(wanted)
    residual = (wanted - u @ (shares * (u.T @ wanted))) / np.clip(1 - leverage, 1e-6, None)
    return float(np.sqrt((residual**2).mean())), s / (s**2 + penalty)

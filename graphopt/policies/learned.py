"""Confidence that is fitted to data: the probability that a stage's answer is right, by logistic regression.

    sigmoid(w . f + b)    f: first p, first p - second p, 1 - H(p) / log C, and the agreement with the stages before, [N, 4]

One set of weights for each stage, found by Newton's method with a little weight decay, on labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.policies.confidence import agreement, entropy, margin, softmax
from graphopt.policies.elementary import EXACT, Functions

Array = np.ndarray[Any, Any]
DECAY = 1e-3  # of the weights, beside the mean loss
STEPS = 50


def features(p: Array, streak: Array, stage: int, using: Functions = EXACT) -> Array:
    """What is looked at, with a one for the bias: [N, 5]."""
    return np.stack([softmax(p), margin(p), entropy(p, using), agreement(streak, stage), np.ones(len(p))], axis=1)


def confidence(found: Array, weights: tuple[float, ...], using: Functions = EXACT) -> Array:
    """sigmoid(features . weights), [N]. Added up by column, so that a sample alone gives the same as in a batch."""
    total = np.asarray(sum(found[:, i] * w for i, w in enumerate(weights)))
    small = using.exp(-np.abs(total))
    sure: Array = np.where(total < 0, small, 1.0) / (1.0 + small)
    return sure


def fit(found: Array, right: Array) -> tuple[float, ...]:
    """Weights for features [N, 5] and whether answers are right, [N]."""
    target, weights = right.astype(np.float64), np.zeros(found.shape[1])
    decay = np.full(found.shape[1], DECAY)
    decay[-1] = 1e-9  # of the bias: only so that there is one answer where all are right
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(found @ weights, -30, 30)))
        slope = found.T @ (p - target) / len(found) + decay * weights
        curve = (found * (p * (1 - p))[:, None]).T @ found / len(found) + np.diag(decay + 1e-9)
        step = np.linalg.solve(curve, slope)
        weights -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-9:
            break
    return tuple(float(w) for w in weights)

"""Temperatures, after which confidence is what it says; and how far it is from that before and behind.

    temperature   T that minimizes the mean cross entropy of softmax(logits / T) on held-out labels
    ECE           sum over bins of |samples in the bin| / N * |accuracy of the bin - mean confidence of the bin|

Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 2 and 4.2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt.policies.confidence import probabilities

Array = np.ndarray[Any, Any]
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are looked at
GOLDEN = (math.sqrt(5) - 1) / 2
STEPS = 40  # of the search, after which log T is known to 1e-7
BINS = 15


def temperature(logits: Array, labels: Array) -> float:
    """The temperature of logits [N, C] for classes [N], by golden-section search: the loss has one minimum."""
    low, high = math.log(LOWEST), math.log(HIGHEST)

    def loss(log_t: float) -> float:
        return cross_entropy(logits, labels, math.exp(log_t))

    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - GOLDEN * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + GOLDEN * (high - low)
            at_b = loss(b)
    return math.exp((low + high) / 2)


def cross_entropy(logits: Array, labels: Array, temperature: float) -> float:
    """The mean of -log softmax(logits / temperature)[label]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    logs = np.log(np.exp(scaled).sum(axis=1))
    return float((logs - scaled[np.arange(len(labels)), labels]).mean())


def calibration_error(logits: Array, labels: Array, temperature: float = 1.0) -> float:
    """The expected calibration error, 0 to 1, of the largest probability, over 15 bins of equal width."""
    p = probabilities(logits, temperature)
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    apart = [abs(float(right[bins == b].sum() - sure[bins == b].sum())) for b in range(BINS)]
    return sum(apart) / len(labels)

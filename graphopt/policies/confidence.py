"""How sure an answer is: from the logits of classes [N, C] to a number from 0 to 1 for each sample, [N].

    softmax     max p                       Hendrycks and Gimpel 2017, "A Baseline for Detecting Misclassified Examples"
    entropy     1 - H(p) / log C            Teerapittayanon et al. 2016, "BranchyNet", section III
    margin      first p - second p
    agreement   (n - 1) / k                 the last n of the k + 1 stages so far predict the same class

    p = softmax(logits / temperature)

`agreement` at the threshold q / k stops a sample once q stages in a row repeated what the one before them said, which is
patience (Zhou et al. 2020, "BERT Loses Patience"); the first stage is never sure. All is computed in float64, in one order and
with one exp and log (`elementary.py`), so that a sample gets the same bits alone and in a batch, on every machine, and in C.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from graphopt.policies.elementary import EXACT, Functions
from graphopt.utils.errors import InputError

Array = np.ndarray[Any, Any]
Name = Literal["softmax", "entropy", "margin", "agreement", "learned"]
NAMES: tuple[str, ...] = get_args(Name)


def probabilities(logits: Array, temperature: float = 1.0, using: Functions = EXACT) -> Array:
    """softmax(logits / temperature), float64 [N, C]."""
    scaled = logits.astype(np.float64)
    scaled /= temperature
    scaled -= np.fmax.reduce(scaled, axis=1, keepdims=True)
    shares = using.exp(scaled)
    shares /= total(shares)[:, None]
    return shares


def total(terms: Array) -> Array:
    """The sum over classes [N, C], one after the other, [N]: NumPy's own sum adds in an order that depends on the CPU."""
    found: Array = np.add.accumulate(terms, axis=1)[:, -1]
    return found


def softmax(p: Array) -> Array:
    """The largest probability, [N]."""
    found: Array = np.maximum.reduce(p, axis=1)
    return found


def entropy(p: Array, using: Functions = EXACT) -> Array:
    """1 - H(p) / log C, [N]: 1 where one class has all, 0 where all have the same."""
    logs = using.log(np.maximum(p, np.finfo(np.float64).tiny))
    found: Array = np.clip(1.0 + total(p * logs) / log_classes(p.shape[1]), 0.0, 1.0)
    return found


@cache
def log_classes(count: int) -> float:
    """The entropy of equal probabilities."""
    return float(EXACT.log(np.array([float(count)]))[0])


def margin(p: Array) -> Array:
    """The largest probability less the second, [N]."""
    two = np.partition(p, -2, axis=1)
    found: Array = two[:, -1] - two[:, -2]
    return found


def agreement(streak: Array, stage: int) -> Array:
    """From the number of stages in a row, the last one included, that predict the same class, [N]. stage: from 0."""
    found: Array = (streak - 1) / max(stage, 1)
    return found


def check_classes(outputs: list[Array], stage: int) -> None:
    """Refuse outputs that are no classes.

    Raises:
        InputError: the first output is not logits [N, C] in floating point, with two classes or more.
    """
    first = outputs[0]
    if first.dtype.kind != "f" or first.ndim != 2 or first.shape[1] < 2:
        raise InputError(
            f"the first output of stage {stage} is {first.dtype} {list(first.shape)}, but confidence by name is of the logits of "
            "classes, [N, C] in floating point; give confidence=function, which takes the stage's outputs"
        )

"""exp and log whose last bits depend on no library: close to the truth, and the same number by number as all at once."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.policies import Policy
from graphopt.policies.confidence import entropy, margin, probabilities, softmax
from graphopt.policies.elementary import LEAST, exp, log
from graphopt.policies.stages import History

RANDOM = np.random.default_rng(0)
EXPONENTS = np.concatenate(
    [-RANDOM.random(20_000) * 40, -RANDOM.random(20_000) * 699, -RANDOM.random(1000) * 1e-8, [0.0]]
)
NUMBERS = np.concatenate(
    [RANDOM.random(20_000), 1 + RANDOM.random(1000) * 1e-8, np.exp(-RANDOM.random(9000) * 600), [1.0]]
)


def off(found: np.ndarray, truth: np.ndarray) -> float:  # type: ignore[type-arg]
    """The largest error in units in the last place."""
    return float(np.max(np.abs(found - truth) / np.spacing(np.maximum(np.abs(found), np.finfo(float).tiny))))


@pytest.mark.skipif(np.finfo(np.longdouble).precision <= 15, reason="needs numbers longer than float64")
def test_they_are_right_to_the_last_bits() -> None:
    assert off(exp(EXPONENTS), np.exp(EXPONENTS.astype(np.longdouble))) < 1
    assert off(log(NUMBERS), np.log(NUMBERS.astype(np.longdouble))) < 3


def test_their_ends() -> None:
    assert exp(np.array([0.0, -0.0])).tolist() == [1.0, 1.0]
    assert exp(np.array([-1e9, -np.inf, np.nan])).tolist() == [exp(np.array([LEAST]))[0]] * 3
    assert 0 < exp(np.array([LEAST]))[0] < 1e-300
    assert log(np.array([1.0])).tolist() == [0.0]


def test_one_number_and_many_have_the_same_bits() -> None:
    assert np.concatenate([exp(EXPONENTS[i : i + 1]) for i in range(500)]).tolist() == exp(EXPONENTS)[:500].tolist()
    assert np.concatenate([log(NUMBERS[i : i + 1]) for i in range(500)]).tolist() == log(NUMBERS)[:500].tolist()


@pytest.mark.parametrize("classes", [2, 7, 130])
def test_a_sample_has_the_same_confidence_alone_and_in_a_batch_of_any_layout(classes: int) -> None:
    logits = (4 * RANDOM.standard_normal((9, classes))).astype(np.float32)
    for how in (softmax, entropy, margin):
        batch = how(probabilities(logits, 1.3))
        assert [how(probabilities(row[None], 1.3))[0] for row in logits] == batch.tolist()
        assert how(probabilities(np.asfortranarray(logits), 1.3)).tolist() == batch.tolist()


@pytest.mark.parametrize("confidence", ["softmax", "entropy", "margin", "learned"])
def test_what_is_decided_quickly_is_decided_right(confidence: str) -> None:
    """Thresholds at the very confidence of a sample, and at the next number over it."""
    weights = ((1.0, 2.0, -0.5, 0.3, -1.0),) if confidence == "learned" else ()
    for row in (3 * RANDOM.standard_normal((200, 1, 10))).astype(np.float32):
        policy = Policy((None,), confidence, (1.3, 1.0), weights)
        (sure,) = History(policy, 1).confidence(0, [row])
        for threshold, goes in ((sure, False), (np.nextafter(sure, 2.0), True), (np.nextafter(sure, -1.0), False)):
            assert History(policy.at([float(threshold)]), 1).going(0, [row]).tolist() == [goes]


def test_logits_without_a_largest_number_are_not_sure() -> None:
    bad = np.array([[np.nan, np.nan, np.nan], [np.inf, np.inf, 0.0]], np.float32)
    with np.errstate(invalid="ignore"):
        p = probabilities(bad)
    assert softmax(p) == pytest.approx(1 / 3)
    assert entropy(p) == pytest.approx(0, abs=1e-12)
